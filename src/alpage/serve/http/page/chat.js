// Chat: the conversation on the screen, and the composer under it.

import { copy } from "./clipboard.js";
import { Conversation } from "./conversation.js";
import { prose } from "./prose.js";
import { Sampling } from "./sampling.js";

const NEAR_PX = 80;
const REASONS = { length: "ended by the limit of tokens", "stop button": "stopped" };

export class Chat {
  constructor() {
    this.conversation = new Conversation();
    this.sampling = new Sampling();
    this.scroll = document.getElementById("scroll");
    this.list = document.getElementById("messages");
    this.welcome = document.getElementById("welcome");
    this.prompt = document.getElementById("prompt");
    this.send = document.getElementById("send");
    this.stop = document.getElementById("stop");
    this.stopping = null;
    this.views = new Map();

    document.getElementById("composer").addEventListener("submit", (event) => this.submit(event));
    this.prompt.addEventListener("keydown", (event) => this.press(event));
    this.stop.addEventListener("click", () => this.stopping?.abort());
    document.getElementById("new-chat").addEventListener("click", () => this.begin());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stopping?.abort();
    });
    this.isAtEnd = true;
    this.size = "";
    this.scroll.addEventListener("scroll", () => this.noteScroll(), { passive: true });
    new ResizeObserver(() => this.noteSize()).observe(this.scroll);
    window.addEventListener("pagehide", () => this.conversation.keep());
    this.show();
    this.goToEnd();
  }

  submit(event) {
    event.preventDefault();
    const text = this.prompt.value.trim();
    if (text === "" || this.stopping !== null) return;
    this.prompt.value = "";
    this.conversation.say(text);
    this.answer();
  }

  press(event) {
    // An input method's Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    event.target.form.requestSubmit();
  }

  begin() {
    this.stopping?.abort();
    this.conversation.clear();
    this.show();
    this.prompt.focus();
  }

  again() {
    if (this.stopping !== null) return;
    this.conversation.takeBack();
    this.answer();
  }

  async answer() {
    this.stopping = new AbortController();
    this.isAtEnd = true;
    this.showBusy();
    this.show();
    const conversation = this.conversation;
    let frame = null;
    const answer = await conversation.answer({
      fields: this.sampling.fields,
      system: this.sampling.system,
      signal: this.stopping.signal,
      // However fast tokens come, they are shown once a frame.
      notify: () => {
        frame ??= requestAnimationFrame(() => {
          frame = null;
          this.show();
        });
      },
    });
    if (frame !== null) cancelAnimationFrame(frame);
    this.stopping = null;
    this.showBusy();
    // It may have been for a conversation that is gone.
    if (!conversation.messages.includes(answer)) conversation.keep();
    this.show();
  }

  // -- the screen ---------------------------------------------------------------------------------

  show() {
    const messages = this.conversation.messages;
    for (const [message, view] of this.views) {
      if (!messages.includes(message)) {
        view.root.remove();
        this.views.delete(message);
      }
    }
    messages.forEach((message, at) => {
      let view = this.views.get(message);
      if (view === undefined) {
        view = new MessageView(message, () => this.again());
        this.views.set(message, view);
        this.list.append(view.root);
      }
      const isLast = at === messages.length - 1;
      view.show({ isLast, isBusy: isLast && this.stopping !== null });
    });
    this.welcome.hidden = messages.length > 0;
    this.list.hidden = messages.length === 0;
    this.list.setAttribute("aria-busy", String(this.stopping !== null));
    if (this.isAtEnd) this.goToEnd();
  }

  showBusy() {
    const isBusy = this.stopping !== null;
    const hadFocus = [this.send, this.stop].includes(document.activeElement);
    this.send.hidden = isBusy;
    this.stop.hidden = !isBusy;
    if (hadFocus) (isBusy ? this.stop : this.prompt).focus();
  }

  // Whoever reads the end goes on to, also when the window changes or the composer grows.
  noteScroll() {
    const { clientWidth, clientHeight, scrollHeight, scrollTop } = this.scroll;
    if (this.size !== `${clientWidth} ${clientHeight}`) return;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  noteSize() {
    this.size = `${this.scroll.clientWidth} ${this.scroll.clientHeight}`;
    if (this.isAtEnd) this.goToEnd();
  }

  goToEnd() {
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }
}

class MessageView {
  constructor(message, again) {
    this.message = message;
    this.root = made("li", `message ${message.role}`);
    this.text = made("div", "prose");
    this.error = made("p", "error");
    this.error.setAttribute("role", "alert");
    this.words = made("span", "words");
    this.copier = button("Copy", () => this.copy());
    this.again = button("Again", again);
    const foot = made("div", "foot");
    foot.append(this.words, this.copier, this.again);
    this.root.append(this.text, this.error, foot);
  }

  show({ isLast, isBusy }) {
    const { role, content, error, reason, speed } = this.message;
    if (content !== this.shown) {
      this.text.replaceChildren(role === "user" ? content : prose(content));
      this.shown = content;
    }
    this.root.classList.toggle("busy", isBusy && role === "assistant");
    if (this.error.textContent !== (error ?? "")) this.error.textContent = error ?? "";
    this.error.hidden = error === undefined;
    this.words.textContent = role === "user" ? "" : [speedWords(speed), REASONS[reason]].filter(Boolean).join(" · ");
    this.words.hidden = this.words.textContent === "";
    this.copier.hidden = isBusy || content === "";
    this.again.hidden = isBusy || !isLast;
    this.again.textContent = error !== undefined || role === "user" ? "Try again" : "Regenerate";
  }

  async copy() {
    this.copier.textContent = (await copy(this.message.content)) ? "Copied" : "Not allowed";
    setTimeout(() => { this.copier.textContent = "Copy"; }, 1500);
  }
}

function speedWords(speed) {
  if (speed === undefined) return "";
  const { numTokens, firstMs, tokensPerS } = speed;
  const first = firstMs < 1000 ? `${Math.round(firstMs)} ms` : `${(firstMs / 1000).toFixed(1)} s`;
  const rate = tokensPerS === undefined ? [] : [`${tokensPerS.toFixed(tokensPerS < 100 ? 1 : 0)} tokens/s`];
  const count = numTokens === 1 ? "1 token" : `${numTokens} tokens`;
  return [count, ...rate, `first after ${first}`].join(" · ");
}

function made(name, className) {
  const element = document.createElement(name);
  element.className = className;
  return element;
}

function button(words, click) {
  const element = made("button", "");
  element.type = "button";
  element.textContent = words;
  element.addEventListener("click", click);
  return element;
}
