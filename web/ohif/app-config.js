// How OHIF runs here: below /ohif/, with the archive behind our server's /dicom-web, and our extension.
window.PUBLIC_URL = "/ohif/";
window.browserImportFunction = (name) => import(name);

// What is stored for a ticket goes to the ticket's address, so that the server knows whose it is.
const archiveRoot = NextSlice.ticket ? `/dicom-web/tickets/${encodeURIComponent(NextSlice.ticket)}` : "/dicom-web";

window.config = {
  routerBasename: "/ohif",
  extensions: [NextSlice.viewer.extension],
  modes: [],
  customizationService: {},
  showStudyList: true,
  disableConfirmationPrompts: true,
  investigationalUseDialog: { option: "never" },
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false,
  maxNumberOfWebWorkers: 3,
  strictZSpacingForVolumeViewport: true,
  groupEnabledModesFirst: true,
  showErrorDetails: "always",
  maxNumRequests: { interaction: 100, thumbnail: 5, prefetch: 25 },
  defaultDataSourceName: "archive",
  dataSources: [
    {
      namespace: "@ohif/extension-default.dataSourcesModule.dicomweb",
      sourceName: "archive",
      configuration: {
        friendlyName: "The archive",
        name: "archive",
        qidoRoot: "/dicom-web",
        wadoRoot: archiveRoot,
        wadoUriRoot: "/dicom-web/wado",
        qidoSupportsIncludeField: true,
        supportsReject: false,
        imageRendering: "wadors",
        thumbnailRendering: "wadors",
        enableStudyLazyLoad: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        dicomUploadEnabled: true,
        omitQuotationForMultipartRequest: true,
        bulkDataURI: { enabled: true, relativeResolution: "studies" },
      },
    },
  ],
};
