// The ways in which work on a ticket ends: handed in, nothing there, skipped, released.

import * as api from "./api.js";
import * as drafts from "./drafts.js";
import { writeMask } from "./masks.js";
import { askFor, element, say } from "./panel.js";

/** Nothing of the classes is on the shown slice: on to the next one that is not done, or hand in. */
export function nothingHere(desk) {
  const { drawing, nothing } = desk.case;
  // Among scribbles an empty plane says nothing; background everywhere does.
  const plane = new Uint8Array(drawing.width * drawing.height).fill(desk.unlabeled ?? 0);
  if (!desk.put(plane)) return;
  nothing.add(desk.stage.slice);
  desk.keep();
  desk.moved();
  const left = drawing.slices.find((slice) => desk.stateOf(slice) === "unseen" || isOpen(desk, slice));
  if (left === undefined) submit(desk);
  else desk.stage.go(desk.axis, left);
}

/** Whether nothing is drawn on a slice, and nobody said that nothing is there. */
const isOpen = ({ case: { drawing, nothing } }, slice) => drawing.isEmpty(slice) && !nothing.has(slice);

/** Hand in every asked slice. The first try tells of slices that nobody looked at, or that are empty. */
export async function submit(desk) {
  if (!desk.case || desk.submitting) return;
  if (!isReady(desk)) return;
  const { ticket, item, drawing } = desk.case;
  desk.submitting = true;
  const begun = performance.now();
  try {
    desk.keep();
    await desk.saving;
    const mask = await writeMask(item.shape, item.affine, desk.axis, toSend(desk), desk.unlabeled ?? 0);
    const entry = { ticket: ticket.ticket, image: ticket.image, annotator: desk.annotator, slices: drawing.slices, mask };
    await desk.outbox.add(entry);
    await desk.next();
    performance.measure("submit to next", { start: begun });
  } catch (error) {
    say(`The drawing could not be handed in: ${error?.message} It is kept here.`, "error");
  } finally {
    desk.submitting = false;
  }
}

function isReady(desk) {
  const { ticket, drawing, sure } = desk.case;
  if (ticket.unit === "volume") return true;
  const unseen = drawing.slices.find((slice) => desk.stateOf(slice) === "unseen");
  if (unseen !== undefined) {
    desk.stage.go(desk.axis, unseen);
    say(`Slice ${unseen} is asked for too.`);
    return false;
  }
  const empty = drawing.slices.filter((slice) => isOpen(desk, slice));
  if (!empty.length || sure) return true;
  desk.stage.go(desk.axis, empty[0]);
  if (desk.unlabeled !== null) {
    say(`Slice ${empty[0]} has no stroke. Draw some, or say "Nothing here".`, "warning");
    return false;
  }
  desk.case.sure = true;
  say(`Slice ${empty.join(", ")}: nothing is drawn. Submit once more if nothing is there.`, "warning");
  return false;
}

/** Planes in the server's values: among scribbles 0 is a stroke of background, and the drawing's 0 no stroke. */
function toSend({ case: { drawing }, unlabeled: mark }) {
  const swap = (value) => (value === 0 ? mark : value === mark ? 0 : value);
  const planes = drawing.slices.map((slice) => [slice, drawing.plane(slice)]);
  return new Map(mark === null ? planes : planes.map(([slice, plane]) => [slice, plane.map(swap)]));
}

export async function skip(desk) {
  const reason = await askFor(element("skip-dialog"), element("reason"));
  if (reason === null) return;
  const { ticket } = desk.case.ticket;
  await giveUp(desk, () => api.skip(ticket, reason || "no reason given"), () => desk.next());
}

export const release = (desk) =>
  giveUp(desk, () => api.release(desk.case.ticket.ticket), () => location.assign("/worklist"));

async function giveUp(desk, act, then) {
  const id = desk.case.ticket.ticket;
  try {
    await act();
  } catch (error) {
    // Over or closed already: it is not ours any more, which is what was wanted.
    if (!(error instanceof api.Refused) || ![409, 410].includes(error.status)) {
      say(error.message, "error");
      return;
    }
  }
  await desk.saving;
  await drafts.dropDraft(id);
  await then();
}
