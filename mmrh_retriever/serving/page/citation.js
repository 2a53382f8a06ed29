/** Citations as text, and numbers that people read. */

/** What to cite: file, page and box, such as "report.pdf, page 7, box 62, 213, 517, 271 pt from the upper left". */
export function citation(result, region, kind) {
  const page = `${result.name}, page ${result.page}${result.label ? ` (${result.label})` : ""}`;
  if (!region) return page;
  const unit = kind === "image" ? "px" : "pt";
  return `${page}, box ${region.box.map((side) => Math.round(side)).join(", ")} ${unit} from the upper left`;
}

/** Put a text on the clipboard. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea"); // without HTTPS there is no navigator.clipboard
  const before = document.activeElement;
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  before?.focus();
  if (!copied) throw new Error("the browser allows no copying");
}

/** Writes numbers that stand together with as many decimals as give the largest three digits. */
export function numbersLike(values) {
  const largest = Math.max(0, ...values.map(Math.abs));
  const decimals = largest > 0 ? Math.min(9, Math.max(2, 2 - Math.floor(Math.log10(largest)))) : 2;
  return (value) => (value === 0 ? 0 : value).toFixed(decimals).replace("-", "\u2212");
}

/** A probability in percent. */
export function percent(probability) {
  if (probability > 0 && probability < 0.01) return "under 1 %";
  if (probability < 1 && probability > 0.99) return "over 99 %";
  return `${Math.round(100 * probability)} %`;
}
