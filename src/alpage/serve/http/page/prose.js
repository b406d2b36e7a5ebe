// Prose: a model's text as elements. A little of Markdown, and never a text taken as HTML.

const FENCE = /^\s*(```|~~~)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const QUOTE = /^>\s?/;
const BULLET = /^\s*[-*+]\s+/;
const NUMBERED = /^\s*(\d{1,9})[.)]\s+/;
const INLINE = /`([^`\n]+)`|\*\*(?=\S)(.+?\S)\*\*(?!\*)|\*(?=[^\s*])([^*\n]*[^\s*])\*(?!\w)/g;

export function prose(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.split("\n")));
  return fragment;
}

function blocks(lines) {
  const found = [];
  let at = 0;
  const takeWhile = (isOne) => {
    const first = at;
    while (at < lines.length && isOne(lines[at])) at += 1;
    return lines.slice(first, at);
  };
  while (at < lines.length) {
    const line = lines[at];
    if (line.trim() === "") {
      at += 1;
    } else if (FENCE.test(line)) {
      at += 1;
      found.push(element("pre", element("code", takeWhile((l) => !FENCE.test(l)).join("\n"))));
      at += 1;
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(line);
      found.push(element(`h${Math.min(5, marks.length + 2)}`, ...inline(title)));
      at += 1;
    } else if (QUOTE.test(line)) {
      const quoted = takeWhile((l) => QUOTE.test(l)).map((l) => l.replace(QUOTE, ""));
      found.push(element("blockquote", ...inline(quoted.join("\n"))));
    } else if (BULLET.test(line)) {
      found.push(list("ul", BULLET, takeWhile((l) => BULLET.test(l) || isContinued(l))));
    } else if (NUMBERED.test(line)) {
      const numbered = list("ol", NUMBERED, takeWhile((l) => NUMBERED.test(l) || isContinued(l)));
      numbered.start = Number(NUMBERED.exec(line)[1]);
      found.push(numbered);
    } else {
      const [first] = takeWhile((l) => l === line).slice(0, 1);
      const rest = takeWhile((l) => l.trim() !== "" && !begins(l));
      found.push(element("p", ...inline([first, ...rest].join("\n"))));
    }
  }
  return found;
}

const begins = (line) => [FENCE, HEADING, QUOTE, BULLET, NUMBERED].some((mark) => mark.test(line));
const isContinued = (line) => /^\s{2,}\S/.test(line);

function list(name, mark, lines) {
  const items = [];
  for (const line of lines) {
    if (mark.test(line)) items.push(line.replace(mark, ""));
    else items.push(`${items.pop()}\n${line.trim()}`);
  }
  return element(name, ...items.map((item) => element("li", ...inline(item))));
}

function inline(text) {
  const parts = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    parts.push(...broken(text.slice(last, match.index)));
    const [whole, code, strong, emphasis] = match;
    if (code !== undefined) parts.push(element("code", code));
    else if (strong !== undefined) parts.push(element("strong", ...inline(strong)));
    else parts.push(element("em", ...inline(emphasis)));
    last = match.index + whole.length;
  }
  parts.push(...broken(text.slice(last)));
  return parts;
}

// A line's end is one: models write verses and addresses.
function broken(text) {
  return text.split("\n").flatMap((line, at) => (at === 0 ? [line] : [document.createElement("br"), line]));
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
