/** Reads new pages in portions, so that no request takes too long, and people see how far it is. */

import { rank } from "./server.js";

const FIRST = 4; // pages of the first portion; fewer are not worth one
const QUICK = 2000; // milliseconds: the next portion is larger
const SLOW = 15000; // the next is smaller
const ANYTHING = "What is on this page?";

const read = new Set(); // ids of files that were read since the page was opened

/** Let the model read the files that it has not read; `progress` is called with pages read and pages in all. */
export async function readAhead(files, { signal, progress }) {
  const unread = files.filter((file) => !read.has(file.id));
  const all = unread.reduce((sum, file) => sum + file.page_count, 0);
  if (all <= FIRST) return;
  let done = 0;
  let portion = FIRST;
  progress(0, all);
  for (const file of unread) {
    for (let page = 1; page <= file.page_count;) {
      const last = Math.min(file.page_count, page + portion - 1);
      const began = performance.now();
      await rank(ANYTHING, [file.id], { best: 1, regions: 0, pages: `${page}-${last}`, signal });
      const took = performance.now() - began;
      if (took < QUICK) portion *= 2;
      else if (took > SLOW) portion = Math.max(1, Math.floor(portion / 2));
      done += last - page + 1;
      page = last + 1;
      progress(done, all);
    }
    read.add(file.id);
  }
}
