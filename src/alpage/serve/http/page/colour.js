// Colour: what a request looks like, by its number alone.

// Each next hue lies in the widest gap that those before have left. Reds are kept for evictions.
const GOLDEN = 0.618034;
const FIRST_HUE = 75;
const NUM_HUES = 265;
const known = new Map();

const hue = (number) => (FIRST_HUE + ((0.3 + number * GOLDEN) % 1) * NUM_HUES).toFixed(1);

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
