// Buttons, sliders and keys of the page, and what they do.

import { nothingHere, release, skip, submit } from "./ending.js";
import { showUncertainty, startFromPrediction } from "./overlays.js";
import { element, markClass, say, showShortcuts } from "./panel.js";

const SHORTCUTS = [
  ["B, E, F, M", "Brush, eraser, fill, move the picture"],
  ["1 to 9", "Choose a class"],
  ["[ and ]", "Smaller, larger brush"],
  ["Z, Y", "Undo, redo (also with Ctrl)"],
  ["N, P", "Next, previous asked slice"],
  ["Page up, page down", "Slice up, down (also , and .)"],
  ["Arrows, space", "On the picture: move the cursor, use the tool (shift: by ten)"],
  ["Shift with 1, 2, 3", "Axial, coronal, sagittal"],
  ["G, C", "Start this slice from the prediction, clear it"],
  ["U, V", "Uncertainty map, hide the drawing while held"],
  ["+, -, R", "Zoom in, out, whole picture"],
  ["X", "Nothing here"],
  ["Enter", "Submit"],
  ["K", "Skip with a reason"],
  ["Right button", "Drag for window and level"],
  ["Wheel", "Change the slice; with Ctrl zoom"],
];
const DIGIT = /^Digit([1-9])$/;

/** Make the page's controls work on the desk. */
export function bindControls(desk) {
  const { stage, viewer } = desk;
  const whenOpen = (act) => (event) => desk.case && act(event);
  const click = (id, act) => element(id).addEventListener("click", whenOpen(act));

  const setTool = (tool) => {
    stage.tool = tool;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", button.dataset.tool === tool);
    }
    element("surface").dataset.tool = tool;
    stage.mark();
  };
  const setSize = (size) => {
    stage.setSize(size);
    element("size").value = stage.size;
    element("size-shown").textContent = stage.size;
  };
  const lookAlong = (plane) => {
    const axis = viewer.axisOf(plane);
    if (axis === desk.axis) stage.go(axis, desk.neighbour(1) ?? desk.case.drawing.slices[0]);
    else stage.go(axis, viewer.position()[axis]);
  };
  const reset = () => {
    viewer.resetView();
    stage.mark();
  };
  const zoom = (factor) => {
    viewer.zoom(factor);
    stage.mark();
  };
  const toggleHeat = () => element("heat").click();

  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => setTool(button.dataset.tool));
  }
  for (const button of document.querySelectorAll("[data-plane]")) {
    button.addEventListener("click", whenOpen(() => lookAlong(Number(button.dataset.plane))));
  }
  element("size").addEventListener("input", (event) => setSize(Number(event.target.value)));
  element("slice").addEventListener("input", whenOpen((event) => stage.go(viewer.axis, Number(event.target.value))));
  element("opacity").addEventListener("change", (event) => viewer.setDrawingOpacity(event.target.value / 100));
  element("heat").addEventListener("change", whenOpen((event) => showUncertainty(desk, event.target.checked)));
  element("heat-opacity").addEventListener("change", (event) => viewer.setHeatOpacity(event.target.value / 100));
  element("classes").addEventListener("chosen", (event) => markClass(event.detail));
  element("who").addEventListener("click", () => desk.signIn(true).then(() => desk.case && desk.loadAhead()));
  element("help-open").addEventListener("click", () => element("help-dialog").showModal());
  window.addEventListener("resize", () => stage.mark());
  click("undo", () => desk.back("undo"));
  click("redo", () => desk.back("redo"));
  click("previous", () => desk.toAsked(-1));
  click("next", () => desk.toAsked(1));
  click("predict", () => startFromPrediction(desk));
  click("clear", () => desk.put(null));
  click("reset", reset);
  click("nothing", () => nothingHere(desk));
  click("submit", () => submit(desk));
  click("skip", () => skip(desk));
  click("release", () => release(desk));
  showShortcuts(SHORTCUTS);

  const keys = {
    b: () => setTool("brush"),
    e: () => setTool("eraser"),
    f: () => setTool("fill"),
    m: () => setTool("move"),
    "[": () => setSize(stage.size - 1),
    "]": () => setSize(stage.size + 1),
    z: (event) => desk.back(event.shiftKey ? "redo" : "undo"),
    y: () => desk.back("redo"),
    n: () => desk.toAsked(1),
    p: () => desk.toAsked(-1),
    ",": () => stage.step(-1),
    ".": () => stage.step(1),
    pageup: () => stage.step(1),
    pagedown: () => stage.step(-1),
    g: () => startFromPrediction(desk),
    c: () => desk.put(null),
    u: toggleHeat,
    r: reset,
    "+": () => zoom(1.25),
    "-": () => zoom(0.8),
    x: () => nothingHere(desk),
    enter: () => submit(desk),
    k: () => skip(desk),
    escape: () => say(""),
  };

  let hidden = null;
  const hide = (on) => {
    if (on === (hidden !== null)) return;
    if (on) hidden = viewer.nv.drawOpacity;
    viewer.setDrawingOpacity(on ? 0 : hidden);
    if (!on) hidden = null;
  };

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    const typing = target.closest("dialog") || target.matches("input[type=text], select, textarea");
    if (typing || event.altKey || !desk.case) return;
    const key = event.key.toLowerCase();
    if (event.key === "?") {
      element("help-dialog").showModal();
      return;
    }
    // Enter and space press the button that has the focus; arrows and pages move the slider that has it.
    if (key === "enter" && target.matches("button, a, input[type=checkbox]")) return;
    if (key.startsWith("page") && target.matches("input[type=range]")) return;
    if ((event.ctrlKey || event.metaKey) && key !== "z" && key !== "y") return;
    const digit = DIGIT.exec(event.code)?.[1];
    if (digit) {
      event.preventDefault();
      if (event.shiftKey && digit <= 3) lookAlong(3 - digit);
      else if (!event.shiftKey && desk.classes[digit - 1]) desk.choose(desk.classes[digit - 1].value);
    } else if (key === "v") {
      hide(true);
    } else if (key in keys) {
      event.preventDefault();
      keys[key](event);
    }
  });
  document.addEventListener("keyup", (event) => event.key.toLowerCase() === "v" && hide(false));
  window.addEventListener("blur", () => hide(false));
}
