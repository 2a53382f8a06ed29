/** The question and the chosen files in the page's address, behind #, where they are not sent anywhere. */

const SHOWN = 16; // characters of a file's id: 64 bits

/** What the address says: a question, and beginnings of files' ids. */
export function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  return { question: said.get("question") ?? "", files: (said.get("files") ?? "").split(",").filter(Boolean) };
}

/** Write a question and files into the address; `asked` makes it a step that the browser's Back undoes. */
export function writeAddress(question, files, { asked = false } = {}) {
  const said = new URLSearchParams();
  if (question) said.set("question", question);
  if (files.length) said.set("files", files.map((id) => id.slice(0, SHOWN)).join(","));
  const hash = said.size ? `#${said.toString().replaceAll("%2C", ",")}` : location.pathname + location.search;
  if (hash === location.hash) return;
  if (asked) history.pushState(null, "", hash);
  else history.replaceState(null, "", hash);
}
