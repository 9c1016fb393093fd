// Read from a file, a page may not fetch others: the search then lists its hits without excerpts.
"use strict";

if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS === "object") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
