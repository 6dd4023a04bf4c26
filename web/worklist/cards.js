// Cards of asked items. A card stays the same element while its item is shown, so that focus and picture stay too.

import { picture } from "/web/api.js";
import { clock, decimals, make, say, who } from "/web/show.js";

const NAMES = { open: "open", leased: "being annotated", labeled: "labelled", skipped: "skipped", unreadable: "cannot be read" };
const OPTIONS = "?size=256&contour=1&heat=1";
const RETRY_MS = 20_000;

/** does: annotate(entry), release(entry), skip(entry), called by the buttons. */
export function showCards(place, entries, does) {
  const there = new Map([...place.children].map((element) => [element.dataset.key, element]));
  const wanted = entries.map((entry) => {
    const key = `${entry.image}\n${entry.slice}`;
    const element = there.get(key) ?? create(key, does);
    there.delete(key);
    update(element, entry);
    return element;
  });
  for (const gone of there.values()) gone.remove();
  wanted.forEach((element, i) => { if (place.children[i] !== element) place.insertBefore(element, place.children[i] ?? null); });
}

function create(key, does) {
  const element = make("li", { class: "card" },
    make("div", { class: "thumb" }, make("span", { class: "waiting" }, "No picture yet"), make("span", { class: "score" })),
    make("div", { class: "body" },
      make("h3", {}), make("div", { class: "line" }, make("span", { class: "tag" }), make("span", { class: "by" })),
      make("p", { class: "why clamp" }), make("p", { class: "when" }), make("div", { class: "buttons" }),
      make("details", {}, make("summary", {}, "In 3D Slicer"), make("p", {}))));
  element.dataset.key = key;
  const act = (name) => () => does[name](element.entry);
  const button = (name, text) => make("button", { type: "button", "data-does": name, onclick: act(name) }, text);
  const annotate = button("annotate", "Annotate");
  annotate.className = "primary";
  element.querySelector(".buttons").append(annotate, make("a", { class: "button ohif" }, "OHIF"), button("skip", "Skip"), button("release", "Release"));
  seen.observe(element);
  return element;
}

function update(element, entry) {
  const part = (selector) => element.querySelector(selector);
  const { state } = entry;
  const taken = state === "leased";
  element.entry = entry;
  element.dataset.state = state;
  const title = entry.slice === null ? entry.image : `${entry.image} · slice ${entry.slice}`;
  say(part("h3"), title);
  say(part(".score"), decimals(entry.score));
  part(".score").title = "Score: higher is wanted more; scores compare within one round";
  part(".tag").dataset.state = state;
  say(part(".tag"), NAMES[state] ?? state);
  say(part(".by"), entry.annotator === null ? "" : `${taken ? "" : "by "}${who(entry.annotator)}`);
  say(part(".why"), state === "skipped" ? `Skipped: ${entry.reason ?? ""}` : entry.why);
  part(".why").title = part(".why").textContent;
  const until = taken ? `since ${clock(entry.at)}, kept until ${clock(entry.expires_at)}` : entry.at ? clock(entry.at) : `number ${entry.rank + 1} of the round${entry.patient === entry.image ? "" : ` · patient ${entry.patient}`}`;
  say(part(".when"), until);
  say(part("details p"), entry.links.slicer);
  part("details").hidden = state !== "open" && !taken;
  const shown = { annotate: state === "open" || taken, skip: state === "open" || taken, release: taken };
  for (const [name, isShown] of Object.entries(shown)) {
    const button = part(`[data-does="${name}"]`);
    button.hidden = !isShown;
    button.setAttribute("aria-label", `${button.textContent} ${title}`);
  }
  const ohif = part(".ohif");
  ohif.hidden = !entry.links.ohif;
  if (entry.links.ohif) ohif.href = entry.links.ohif;
}

/** Pictures are asked for when their card comes near the window, and again later while there is none. */
const seen = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) if (isIntersecting) show(target);
}, { rootMargin: "300px" });

async function show(element) {
  seen.unobserve(element);
  const address = await picture(element.entry.links.thumbnail + OPTIONS);
  if (!element.isConnected && element.parentNode === null) {
    if (address) URL.revokeObjectURL(address);
    return;
  }
  if (!address) {
    setTimeout(() => element.isConnected && seen.observe(element), RETRY_MS);
    return;
  }
  const { image, slice } = element.entry;
  const img = make("img", { src: address, alt: `Slice ${slice ?? "in the middle"} of ${image}, with what the model predicts and where it is unsure` });
  img.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
  element.querySelector(".waiting").replaceWith(img);
}
