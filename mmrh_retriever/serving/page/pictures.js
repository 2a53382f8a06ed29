/** Pictures of pages as blob addresses: an img can't send the API key, fetch() can. */

import { picture } from "./server.js";

const KEPT = 150;
const kept = new Map(); // what was asked -> promise of an address
let line = Promise.resolve(); // small pictures come one after the other, behind the large one

/** The address of a page's picture, drawn with a longer side of so many pixels at most. */
export function pictureOf(file, page, { question = null, side }) {
  const key = JSON.stringify([file, page, question, side]);
  const known = kept.get(key);
  if (known) return known;
  const asked = picture(file, page, { question, side }).then((blob) => URL.createObjectURL(blob));
  kept.set(key, asked);
  asked.catch(() => kept.delete(key)); // so that it can be asked again
  if (kept.size > KEPT) forget(kept.keys().next().value);
  return asked;
}

/** Fill an img with a small picture once it comes into view. */
export function smallPicture(image, file, page) {
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    line = line.then(async () => {
      if (!image.isConnected) return;
      image.src = await pictureOf(file, page, { side: 160 });
    }).catch(() => image.classList.add("missing")); // the large picture tells why
  });
  seen.observe(image);
}

/** Forget all pictures, such as those of another key. */
export function forgetPictures() {
  for (const key of [...kept.keys()]) forget(key);
}

function forget(key) {
  kept.get(key)?.then((address) => URL.revokeObjectURL(address), () => undefined);
  kept.delete(key);
}
