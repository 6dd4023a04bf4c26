// What stands around the picture: classes, asked slices, messages. All text from elsewhere goes in as text.

const PALETTE = [
  [239, 83, 80], [66, 165, 245], [102, 187, 106], [255, 202, 40], [171, 71, 188], [38, 198, 218],
  [255, 112, 67], [156, 204, 101], [236, 64, 122], [141, 110, 99], [92, 107, 192], [212, 225, 87],
];
const BACKGROUND = [144, 164, 174];

export const element = (id) => document.getElementById(id);

/** An element with text and attributes. */
export function make(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** {value, name, colour} of what can be painted: the classes, and strokes of background where there are scribbles. */
export function paintable(labels, unlabeled) {
  const found = labels.map((name, n) => ({ value: n + 1, name, colour: PALETTE[n % PALETTE.length] }));
  return unlabeled === null ? found : [...found, { value: unlabeled, name: "background", colour: BACKGROUND }];
}

/** Colours by value from 1, for the viewer. */
export function coloursOf(classes) {
  const all = Array.from({ length: Math.max(...classes.map(({ value }) => value)) }, () => BACKGROUND);
  for (const { value, colour } of classes) all[value - 1] = colour;
  return all;
}

export function showClasses(classes, chosen, choose) {
  const buttons = classes.map(({ value, name, colour }, n) => {
    const button = make("button", "", { type: "button", role: "radio", "aria-checked": value === chosen, title: name });
    const swatch = make("span", "", { class: "swatch", "aria-hidden": "true" });
    swatch.style.backgroundColor = `rgb(${colour.join()})`;
    button.append(swatch, make("span", name, { class: "name" }));
    if (n < 9) button.append(make("kbd", String(n + 1)));
    button.dataset.value = value;
    button.tabIndex = value === chosen ? 0 : -1;
    button.addEventListener("click", () => choose(value));
    button.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const next = (n + by + classes.length) % classes.length;
      choose(classes[next].value);
      element("classes").children[next].focus();
    });
    return button;
  });
  element("classes").replaceChildren(...buttons);
}

export function markClass(chosen) {
  for (const button of element("classes").children) {
    const is = Number(button.dataset.value) === chosen;
    button.setAttribute("aria-checked", is);
    button.tabIndex = is ? 0 : -1;
  }
}

const STATES = { drawn: "drawn", nothing: "nothing here", seen: "seen", unseen: "not seen yet" };

/** The asked slices as buttons. states: {slice: one of STATES}. */
export function showAsked(slices, states, current, go) {
  const box = element("asked");
  if (box.children.length !== slices.length || box.dataset.slices !== slices.join()) {
    box.dataset.slices = slices.join();
    box.replaceChildren(
      ...slices.map((slice) => {
        const button = make("button", String(slice), { type: "button" });
        button.addEventListener("click", () => go(slice));
        return button;
      }),
    );
    element("asked-ticks").replaceChildren(...slices.map((slice) => make("option", "", { value: slice })));
  }
  slices.forEach((slice, n) => {
    const button = box.children[n];
    button.dataset.state = states[slice];
    button.setAttribute("aria-label", `Slice ${slice}, ${STATES[states[slice]]}`);
    button.title = `Slice ${slice}: ${STATES[states[slice]]}`;
    if (slice === current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
}

/** A sentence above the picture; kind is "info", "warning" or "error". An empty one goes away. actions: [[text, act]]. */
export function say(text, kind = "info", actions = []) {
  const line = element("message");
  line.replaceChildren(make("span", text));
  for (const [name, act] of actions) {
    const button = make("button", name, { type: "button" });
    button.addEventListener("click", act);
    line.append(button);
  }
  const close = make("button", "×", { type: "button", "aria-label": "Close this message" });
  close.addEventListener("click", () => say(""));
  line.append(close);
  line.dataset.kind = kind;
  line.hidden = !text;
}

/** Ask in a dialog; what was typed into `field`, or null. */
export function askFor(dialog, field, value = "") {
  return new Promise((resolve) => {
    field.value = value;
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? field.value.trim() : null), {
      once: true,
    });
    dialog.showModal();
    field.focus();
  });
}

export function showShortcuts(rows) {
  element("shortcuts").replaceChildren(
    ...rows.flatMap(([keys, what]) => [make("dt", keys), make("dd", what)]),
  );
}
