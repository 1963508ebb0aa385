// One request: where its time went, and how to send it from elsewhere.

import { byId, element, milliseconds } from "./dom.js";

const WORDS = {
  read: "Read the body", parse: "Parse", fetch: "Fetch by URL", wait: "Wait for a decoder", decode: "Decode",
  queue: "Wait for the model", infer: "Model", encode: "Write the answer", rest: "Rest of the service",
  network: "Network",
};

/** The stages as a bar, and a legend with a line for each. */
export function showLatency(timing) {
  const parts = timing ? allParts(timing) : [];
  const whole = parts.reduce((sum, [, time]) => sum + time, 0) || 1;
  byId("round-trip").textContent = timing ? milliseconds(timing.roundTrip) : "–";
  byId("cached").hidden = !timing?.isCached;
  byId("latency-note").textContent = timing ? `${milliseconds(timing.total)} of it in the service` : "";
  byId("bar").replaceChildren(...parts.map(([name, time]) => {
    const part = element("span", { "data-stage": name, title: `${WORDS[name] ?? name}: ${milliseconds(time)}` });
    part.style.setProperty("--share", String(time / whole));
    return part;
  }));
  byId("legend").replaceChildren(...parts.map(([name, time]) =>
    element("div", { "data-stage": name }, element("dt", {}, WORDS[name] ?? name), element("dd", {}, milliseconds(time)))));
}

/** The service's own stages, what of its time they leave, and what of the round trip was outside of it. */
function allParts({ stages, total, roundTrip }) {
  const rest = total - stages.reduce((sum, [, time]) => sum + time, 0);
  const outside = roundTrip - total;
  const others = [["rest", rest], ["network", outside]].filter(([, time]) => time > 0);
  return [...stages, ...others];
}

/** The request as a command or a program. A key is not repeated: it comes from the environment. */
export function snippet(language, address, { model, name, type, hasKey }) {
  const stem = name.replace(/\.\w+$/, "") || "image";
  const url = `${address}?model=${encodeURIComponent(model)}`;
  return language === "python" ? python(url, name, hasKey) : curl(url, name, stem, type, hasKey);
}

function curl(url, name, stem, type, hasKey) {
  return [
    `curl ${quoted(url)}`,
    ...(hasKey ? ['  -H "Authorization: Bearer $MCBEIT_API_KEY"'] : []),
    `  -H 'Content-Type: ${type || "application/octet-stream"}'`,
    "  -H 'Accept: application/x-npy'",
    `  --data-binary ${quoted(`@${name}`)}`,
    `  --output ${quoted(`${stem}.npy`)}`,
  ].join(" \\\n");
}

function python(url, name, hasKey) {
  return [
    "import io",
    ...(hasKey ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "import httpx",
    "import numpy as np",
    "",
    'headers = {"accept": "application/x-npy"}',
    ...(hasKey ? ['headers["authorization"] = f"Bearer {os.environ[\'MCBEIT_API_KEY\']}"'] : []),
    "answer = httpx.post(",
    `    ${JSON.stringify(url)},`,
    `    content=Path(${JSON.stringify(name)}).read_bytes(),`,
    "    headers=headers,",
    ")",
    "answer.raise_for_status()",
    "vector = np.load(io.BytesIO(answer.content))[0]",
  ].join("\n");
}

/** For a shell, where nothing within single quotes is special but the quote itself. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
