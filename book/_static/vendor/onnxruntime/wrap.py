"""Write runtime.js from the `dist` folder of the npm package onnxruntime-web: python wrap.py package/dist

A page that is opened from a file cannot fetch, so module and wasm come as texts in one plain script.
"""

import base64
import gzip
import json
import pathlib
import sys

dist = pathlib.Path(sys.argv[1])
wasm = gzip.compress((dist / "ort-wasm-simd-threaded.wasm").read_bytes(), 9, mtime=0)
parts = {"module": (dist / "ort.wasm.bundle.min.mjs").read_text(), "wasm": base64.b64encode(wasm).decode()}
text = f"window.cosRuntime = {json.dumps(parts, separators=(',', ':'))};\n"
pathlib.Path(__file__).with_name("runtime.js").write_text(text)
