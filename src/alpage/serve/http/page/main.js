// Main: puts the parts of the page together.

import { Chat } from "./chat.js";
import { Engine } from "./engine.js";
import { showKeys } from "./key.js";
import { ask } from "./server.js";

const engineSection = document.querySelector(".engine");
const engine = new Engine();

// The engine is asked only while somebody can see it.
function look() {
  engine.look(!document.hidden && getComputedStyle(engineSection).display !== "none");
}

function showView(view) {
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll(".views button")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }
  look();
}

async function showModel() {
  try {
    const { data } = await (await ask("v1/models")).json();
    document.getElementById("model").textContent = data[0].id;
    document.title = `${data[0].id} · alpage`;
  } catch {
    // Whoever asks next is told why.
  }
}

showKeys();
new Chat();
showModel();
look();
for (const button of document.querySelectorAll(".views button")) {
  button.addEventListener("click", () => showView(button.dataset.view));
}
document.addEventListener("visibilitychange", look);
document.addEventListener("key-changed", showModel);
window.addEventListener("resize", look);
