// The server's numbers: from the text that Prometheus reads to what the panel shows. No page in here.

const PREFIX = "paceline:";
const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Samples: [{name, labels, value}]. */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = line.startsWith(PREFIX) && LINE.exec(line.slice(PREFIX.length));
    if (!found) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

/** What the panel needs, at one moment; counts are since the server began, lists are by position or by width. */
export function look(text, seconds) {
  const samples = parse(text);
  const sum = (name) => samples.reduce((total, each) => (each.name === name ? total + each.value : total), 0);
  return {
    seconds,
    running: sum("num_requests_running"),
    waiting: sum("num_requests_waiting"),
    cache: sum("kv_cache_usage_perc"),
    up: sum("engine_up") > 0,
    generated: sum("generation_tokens_total"),
    verifications: sum("spec_decode_num_drafts_total"),
    widths: listed(samples, "spec_decode_num_drafts_per_width_total", "width"),
    drafted: listed(samples, "spec_decode_num_draft_tokens_per_pos_total", "position"),
    accepted: listed(samples, "spec_decode_num_accepted_tokens_per_pos_total", "position"),
  };
}

/** A metric's samples by a label that is a small number, those of all drafters added up. */
function listed(samples, name, label) {
  const counts = [];
  for (const { name: own, labels, value } of samples) {
    const at = Number(labels[label]);
    if (own !== name || !(at >= 0 && at < 256)) continue;
    while (counts.length <= at) counts.push(0);
    counts[at] += value;
  }
  return counts;
}

/** Tokens a second between two looks; 0 when the server began again between them. */
export function rate(before, after) {
  const seconds = after.seconds - before.seconds;
  return seconds > 0 ? Math.max(0, after.generated - before.generated) / seconds : 0;
}

/** Share of the drafts at each position that were accepted between two looks; null where there were none. */
export function acceptance(before, after) {
  return after.drafted.map((count, at) => {
    const drafted = count - (before.drafted[at] ?? 0);
    const accepted = (after.accepted[at] ?? 0) - (before.accepted[at] ?? 0);
    return drafted > 0 ? accepted / drafted : null;
  });
}

/** How often each width was chosen between two looks, as shares; empty without a verification. */
export function widths(before, after) {
  const counts = after.widths.map((count, width) => count - (before.widths[width] ?? 0));
  const all = counts.reduce((total, count) => total + count, 0);
  while (counts.at(-1) === 0) counts.pop();
  return all > 0 ? counts.map((count) => count / all) : [];
}
