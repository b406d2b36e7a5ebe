// Key: the dialog that asks for the server's API key when the server wants one.

import { hasKey, useKey } from "./server.js";

export function showKeys() {
  const dialog = document.getElementById("key-dialog");
  const field = document.getElementById("key");
  const opener = document.getElementById("key-open");
  const words = document.getElementById("key-words");

  const open = () => {
    if (!dialog.open) dialog.showModal();
  };
  opener.hidden = !hasKey();
  opener.addEventListener("click", open);
  document.addEventListener("key-wanted", (event) => {
    opener.hidden = false;
    words.textContent = event.detail;
    open();
  });
  document.getElementById("key-cancel").addEventListener("click", () => dialog.close());
  document.getElementById("key-form").addEventListener("submit", () => {
    useKey(field.value.trim());
    field.value = "";
  });
}
