// The server, as this page needs it: what it serves, its numbers, and answers as they are written.

const KEY = "paceline.key";
const UNREACHABLE = "The server cannot be reached. Is it still running?";
const CUT = "The connection ended in the middle of the answer.";

let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Then it is asked for again after a reload.
}

/** What went wrong, in one sentence. `status`: HTTP's, 0 without an answer. `wait`: seconds the server asks for. */
export class Failure extends Error {
  constructor(sentence, status = 0, wait = 0) {
    super(sentence);
    this.status = status;
    this.wait = wait;
  }
}

/** The key that goes with every request from now on, for as long as this tab is open. */
export function useKey(given) {
  key = given;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // It lasts as long as the page.
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (problem) {
    throw problem.name === "AbortError" ? problem : new Failure(UNREACHABLE);
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  let sentence = `The server answered with status ${response.status}.`;
  try {
    sentence = String((await response.json()).error.message);
  } catch {
    // Not OpenAI's error body: the status has to do.
  }
  return new Failure(sentence, response.status, Number(response.headers.get("Retry-After")) || 0);
}

/** The model that is served first: `{id, max_model_len, speculation: {drafters, num_speculative_tokens}}`. */
export async function served() {
  return (await (await request("v1/models")).json()).data[0];
}

/** The page for Prometheus, as text. */
export async function numbers() {
  return (await request("metrics", { signal: AbortSignal.timeout(5000) })).text();
}

/** Seeds are drawn here: those of the server have more digits than a number in JavaScript. */
export function drawSeed() {
  const [high, low] = crypto.getRandomValues(new Uint16Array(2));
  return high * 65536 + low;
}

/**
 * An answer as it is written, chunk by chunk. `settings`: {drafter, drafts, temperature, seed, length}.
 * Throws `Failure`, or an AbortError when the signal says so.
 */
export async function* ask(messages, settings, signal) {
  const speculation = { drafter: settings.drafter };
  if (settings.drafter !== "none") speculation.num_speculative_tokens = settings.drafts;
  const body = {
    messages,
    speculation,
    temperature: settings.temperature,
    seed: settings.seed,
    max_tokens: settings.length,
    stream: true,
    stream_options: { include_usage: true },
    paceline: { tokens: true },
  };
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  yield* events(response.body);
}

/** Server-sent events, parsed, up to [DONE]. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Failure(CUT);
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Failure(String(event.error.message), 500);
        yield event;
      }
    }
  } catch (problem) {
    throw problem instanceof TypeError ? new Failure(CUT) : problem;
  } finally {
    reader.cancel().catch(() => {});
  }
}
