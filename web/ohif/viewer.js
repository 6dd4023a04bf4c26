// What we do inside OHIF: names of segments, the slice to show, what is painted, and storing it. An extension without a build.
NextSlice.viewer = (() => {
  const NEW_IMAGE = ["CORNERSTONE_STACK_NEW_IMAGE", "CORNERSTONE_VOLUME_NEW_IMAGE"];
  const BRUSH = "CircularBrush";
  const BRUSH_SHARE = 0.03; // of the shorter side of the image
  const OHIF_BRUSH_MM = 25; // covers a small image
  const SMALLEST_BRUSH_MM = 1;
  const MOST_CORRECTIONS = 50;

  let ohif = null; // {services, commands, extensions}
  let segmentationId = null;
  let wanted = null; // the SOP UID to stay on while OHIF arranges itself; null once somebody has touched the page
  let corrections = 0;
  let atStart = new Set(); // SOP UIDs of slices that the start mask has voxels on
  let holdsBrush = false;
  let hasPainted = false;
  const listeners = new Set();

  const sopOf = (imageId) => /\/instances\/([0-9.]+)/.exec(imageId ?? "")?.[1] ?? null;
  const tell = () => listeners.forEach((listener) => listener());

  function viewport() {
    const { viewportGridService, cornerstoneViewportService } = ohif.services;
    return cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getActiveViewportId());
  }

  function currentSop() {
    try {
      return sopOf(viewport()?.getCurrentImageId?.());
    } catch {
      return null; // between two arrangements of the page
    }
  }

  function show(sop) {
    const shown = viewport();
    const index = shown?.getImageIds?.().findIndex((id) => sopOf(id) === sop) ?? -1;
    if (index >= 0 && currentSop() !== sop) shown.setImageIdIndex(index);
    return index >= 0;
  }

  function goTo(sop) {
    wanted = sop;
    corrections = 0;
    show(sop);
  }

  function onNewImage() {
    if (!ohif) return;
    if (holdsBrush) sizeBrush();
    if (wanted && currentSop() !== wanted && corrections < MOST_CORRECTIONS) {
      corrections += 1;
      queueMicrotask(() => wanted && show(wanted));
    }
    tell();
  }

  // On the document, on the way down to the viewport: OHIF replaces the viewport's element as it likes.
  function watch() {
    const inViewport = (event) => viewport()?.element?.contains(event.target);
    const listen = (name, action) => document.addEventListener(name, action, { capture: true });
    NEW_IMAGE.forEach((name) => listen(name, onNewImage));
    listen("wheel", (event) => inViewport(event) && (wanted = null));
    listen("pointerover", (event) => inViewport(event) && holdsBrush && sizeBrush());
    listen("pointerdown", (event) => {
      if (!inViewport(event)) return;
      if (holdsBrush) sizeBrush();
      wanted = null;
      hasPainted = true;
    });
  }

  // OHIF sets its own size, also after ours, when the tools wake up: so until the first stroke, and only over OHIF's own.
  function sizeBrush() {
    const shown = viewport();
    const imageId = hasPainted ? null : shown?.getCurrentImageId?.();
    const image = imageId ? cornerstone.cache.getImage(imageId) : null;
    const group = shown && ohif.services.toolGroupService.getToolGroupForViewport(shown.id);
    if (!image || !group) return;
    const size = cornerstoneTools.utilities.segmentation.getBrushSizeForToolGroup(group.id, BRUSH);
    if (size !== undefined && size !== OHIF_BRUSH_MM) return;
    const shorter = Math.min(image.height * image.rowPixelSpacing, image.width * image.columnPixelSpacing);
    const value = Math.max(SMALLEST_BRUSH_MM, Math.round(shorter * BRUSH_SHARE * 10) / 10);
    if (Number.isFinite(value)) ohif.commands.run("setBrushSize", { value });
  }

  function takeBrush() {
    ohif.commands.run("setToolActiveToolbar", { toolName: BRUSH });
    holdsBrush = true;
    sizeBrush();
    ohif.services.toolbarService.refreshToolbarState({ viewportId: ohif.services.viewportGridService.getActiveViewportId() });
  }

  async function emptyMask() {
    const { viewportGridService, segmentationService } = ohif.services;
    const viewportId = viewportGridService.getActiveViewportId();
    const names = NextSlice.segments.length ? NextSlice.segments : ["annotation"];
    segmentationId = await ohif.commands.runCommand("createLabelmapForViewport", {
      viewportId,
      options: { label: "annotation" },
    });
    segmentationService.setSegmentLabel(segmentationId, 1, names[0]);
    names.slice(1).forEach((label, k) => segmentationService.addSegment(segmentationId, { segmentIndex: k + 2, label }));
    segmentationService.setActiveSegment(segmentationId, 1);
    takeBrush();
  }

  // The mask so far, a DICOM SEG of the archive, for editing. False if the archive lists no such series in this study.
  function startMask() {
    const { viewportGridService, segmentationService, displaySetService } = ohif.services;
    const found = displaySetService.getActiveDisplaySets().find((set) => set.SeriesInstanceUID === NextSlice.startSeries);
    if (!found) return false;
    const id = found.displaySetInstanceUID;
    const opened = segmentationService.subscribe(segmentationService.EVENTS.SEGMENTATION_LOADING_COMPLETE, () => {
      opened.unsubscribe();
      segmentationId = id;
      NextSlice.segments.forEach((label, k) => {
        const known = segmentationService.getSegmentation(id)?.segments ?? {};
        if (!known[k + 1]) segmentationService.addSegment(id, { segmentIndex: k + 1, label });
      });
      segmentationService.setActiveSegment(id, 1);
      takeBrush();
      atStart = painted();
      show(wanted ?? NextSlice.firstSop);
      tell();
    });
    viewportGridService.setDisplaySetsForViewport({
      viewportId: viewportGridService.getActiveViewportId(),
      displaySetInstanceUIDs: [id],
    });
    return true;
  }

  // SOP UIDs of the slices with voxels of the mask that is stored.
  function painted() {
    const found = new Set();
    if (!ohif) return found;
    const mask = cornerstoneTools.segmentation.state.getSegmentation(active());
    for (const imageId of mask?.representationData?.Labelmap?.imageIds ?? []) {
      const image = cornerstone.cache.getImage(imageId);
      if (image?.voxelManager?.getScalarData().some((value) => value !== 0)) found.add(sopOf(image.referencedImageId));
    }
    return found;
  }

  // Slices painted on that nobody asked for and that the start mask did not have.
  const paintedBeside = (sops) => [...painted()].filter((sop) => !atStart.has(sop) && !sops.includes(sop));

  function active() {
    const { viewportGridService, segmentationService } = ohif.services;
    return segmentationService.getActiveSegmentation(viewportGridService.getActiveViewportId())?.segmentationId ?? segmentationId;
  }

  // Store the mask in the archive, as OHIF's own Export > DICOM SEG does, without its dialog.
  async function store(description) {
    const made = await ohif.commands.runCommand(
      "generateSegmentation",
      { segmentationId: active(), options: { SeriesDescription: description } },
      "SEGMENTATION",
    );
    if (!made?.dataset) throw new Error("OHIF made no segmentation.");
    if (made.dataset.StudyID === "No Study ID") made.dataset.StudyID = "";
    await ohif.extensions.getActiveDataSource()[0].store.dicom(made.dataset);
  }

  function onModeEnter({ servicesManager, commandsManager, extensionManager }) {
    const { services } = servicesManager;
    ohif = { services, commands: commandsManager, extensions: extensionManager };
    wanted = NextSlice.firstSop || null;
    // OHIF jumps to a segment's middle when its row is clicked; strokes then land on a slice that nobody asked for.
    commandsManager.registerCommand("CORNERSTONE", "setActiveSegmentAndCenter", {
      commandFn: ({ segmentationId: id, segmentIndex }) => {
        services.segmentationService.setActiveSegmentation(services.viewportGridService.getActiveViewportId(), id);
        services.segmentationService.setActiveSegment(id, segmentIndex);
      },
    });
    const viewports = services.cornerstoneViewportService;
    let begun = false;
    watch();
    viewports.subscribe(viewports.EVENTS.VIEWPORT_DATA_CHANGED, async () => {
      if (!begun && viewport()) {
        begun = true;
        if (NextSlice.ticket && !(NextSlice.startSeries && startMask())) await emptyMask();
        NextSlice.bar?.ready();
      }
      if (wanted) show(wanted);
      tell();
    });
  }

  // Before OHIF lists the study: the server stores the mask so far there, so that it is listed.
  async function preRegistration() {
    if (!NextSlice.ticket || NextSlice.startSeries) return;
    try {
      NextSlice.startSeries = await NextSlice.makeStart(NextSlice.ticket);
    } catch (error) {
      NextSlice.startTrouble = `The mask so far cannot be shown: ${error.message}`;
    }
  }

  return {
    extension: { id: "nextslice.asked", preRegistration, onModeEnter },
    onChange: (listener) => listeners.add(listener),
    currentSop, goTo, painted, paintedBeside, store,
  };
})();
