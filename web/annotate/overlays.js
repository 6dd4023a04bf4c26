// What the model thinks, brought to the picture: its prediction as a start, and where it is unsure.

import * as api from "./api.js";
import { readMask } from "./masks.js";
import { element, say } from "./panel.js";
import { decode } from "./viewer.js";

/** Put the prediction on the shown slice, as an editable start. */
export async function startFromPrediction(desk) {
  const here = desk.case;
  if (!here.prediction) {
    const buffer = await fetched(here, api.prediction, "There is no prediction");
    if (!buffer || here !== desk.case) return;
    here.prediction = await readMask(buffer, here.item.shape, desk.axis);
  }
  const plane = here.prediction.get(desk.stage.slice) ?? null;
  if (desk.put(plane)) say(plane ? "" : "The model predicts nothing on this slice.");
}

/** Show or hide the uncertainty map. */
export async function showUncertainty(desk, on) {
  const here = desk.case;
  if (on && !here.heat) {
    const buffer = await fetched(here, api.uncertainty, "There is no uncertainty map");
    if (!buffer || here !== desk.case) {
      element("heat").checked = false;
      return;
    }
    here.heat = await decode({ buffer, name: "uncertainty.nii.gz" });
  }
  desk.viewer.setHeat(on ? here.heat : null, element("heat-opacity").value / 100);
}

async function fetched(here, get, lacking) {
  try {
    return await get(here.ticket.image, (reason) => say(`${lacking}: ${reason}`, "warning"));
  } catch (error) {
    say(`${lacking}: ${error.message}`, "warning");
    return null;
  }
}
