/** What the page asks of the server. Addresses are relative, so that the server may stand behind a path. */

const KEPT = "mmrh-api-key";

/** A refusal in the server's own words; status 0 if there was no answer. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The API key of this tab, or null. */
export function apiKey() {
  return sessionStorage.getItem(KEPT);
}

/** Keep a key in this tab; null forgets it. */
export function keepApiKey(key) {
  if (key === null) sessionStorage.removeItem(KEPT);
  else sessionStorage.setItem(KEPT, key);
}

/** Whether the model is loaded. */
export async function isReady(signal) {
  const answer = await fetch("readyz", { signal }).catch(() => null);
  return answer?.ok ?? false;
}

/** What the model is called, and whether files can be read before they are asked. */
export async function model() {
  const { id, reads_ahead: readsAhead } = (await json("v1/models")).data[0];
  return { name: id, readsAhead };
}

/** All files, those used last first. */
export async function listFiles() {
  return (await json("v1/files")).data;
}

/** Delete a file. */
export function deleteFile(id) {
  return json(`v1/files/${id}`, { method: "DELETE" });
}

/** Send a file; `sent` is called with the part that is on its way, 0 to 1. Gives the file as the server read it. */
export function upload(file, sent) {
  return new Promise((resolve, reject) => {
    const body = new FormData();
    body.append("file", file, file.name);
    const sending = new XMLHttpRequest(); // fetch() says nothing of how much is sent
    sending.open("POST", "v1/files");
    if (apiKey()) sending.setRequestHeader("Authorization", `Bearer ${apiKey()}`);
    sending.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) sent(event.loaded / event.total);
    });
    sending.addEventListener("load", () => {
      if (sending.status === 200) resolve(JSON.parse(sending.responseText));
      else reject(refusal(sending.status, sending.responseText));
    });
    sending.addEventListener("error", () => {
      reject(new Refusal(0, "The server can't be reached, or the file is longer than it takes."));
    });
    sending.send(body);
  });
}

/** The ranking of the files' pages for a question, each page with its best regions; `pages` such as "1-4", or all. */
export async function rank(query, files, { best, regions, pages, signal }) {
  const body = JSON.stringify({ query, files, top_n: best, regions, pages });
  const headers = { "Content-Type": "application/json" };
  const answer = await json("v1/rank", { method: "POST", headers, body, signal });
  return { results: answer.rankings[0].results, pages: answer.usage.documents };
}

/** A page as a picture; with a question under its heat map. */
export async function picture(file, page, { question = null, side, signal }) {
  const asked = new URLSearchParams({ max_side: side });
  if (question !== null) asked.set("query", question);
  return (await answered(`v1/files/${file}/pages/${page}.png?${asked}`, { signal })).blob();
}

async function json(path, options) {
  return (await answered(path, options)).json();
}

async function answered(path, options = {}) {
  const headers = new Headers(options.headers);
  if (apiKey()) headers.set("Authorization", `Bearer ${apiKey()}`);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server can't be reached. Is it running?");
  }
  if (!answer.ok) throw refusal(answer.status, await answer.text());
  return answer;
}

function refusal(status, text) {
  let said = null;
  try {
    said = JSON.parse(text).error?.message;
  } catch {
    // an answer of something between the page and the server
  }
  return new Refusal(status, said ?? `The server answered with status ${status}.`);
}
