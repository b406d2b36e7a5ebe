// Colour: what a request looks like, by its number alone.

// Hues a golden angle apart: neighbours differ, and none comes back soon.
const GOLDEN_DEGREES = 137.508;
const known = new Map();

const hue = (number) => ((150 + (number - 1) * GOLDEN_DEGREES) % 360).toFixed(1);

// `bright` for what is filled, `deep` for what a page has room for still.
export function colours(number) {
  let found = known.get(number);
  if (found === undefined) {
    if (known.size > 4096) known.clear();
    found = { bright: `oklch(0.78 0.13 ${hue(number)})`, deep: `oklch(0.42 0.07 ${hue(number)})` };
    known.set(number, found);
  }
  return found;
}
