// What outlives a reload: the conversation and the settings. Storage may be full, forbidden, or hold anything.

const NAME = "paceline.playground.1";
const MOST_TURNS = 60;
const MOST_CHARACTERS = 2_000_000;

/** `{turns, settings}`, with what is not well-formed left out. */
export function load() {
  let found = null;
  try {
    found = JSON.parse(localStorage.getItem(NAME));
  } catch {
    // Begin afresh.
  }
  const turns = Array.isArray(found?.turns) ? found.turns.filter(isTurn) : [];
  return { turns, settings: isObject(found?.settings) ? found.settings : {} };
}

/** Old turns go first when there is too much; whether it could be kept at all. */
export function save(turns, settings) {
  let kept = turns.slice(-MOST_TURNS);
  let text = JSON.stringify({ turns: kept, settings });
  while (text.length > MOST_CHARACTERS && kept.length) {
    kept = kept.slice(2);
    text = JSON.stringify({ turns: kept, settings });
  }
  try {
    localStorage.setItem(NAME, text);
    return true;
  } catch {
    return false;
  }
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isText = (value) => typeof value === "string";
const isNumber = (value) => Number.isFinite(value);

function isTurn(turn) {
  if (!isObject(turn)) return false;
  if (turn.role === "user") return isText(turn.text);
  if (turn.role === "assistant") return isAnswer(turn);
  return turn.role === "race" && isAnswer(turn.plain) && isAnswer(turn.speculated) && isList(turn.rounds, isRound);
}

const isList = (value, isEntry) => Array.isArray(value) && value.length > 0 && value.every(isEntry);
const isRound = (round) => isObject(round) && isNumber(round.plain) && isNumber(round.speculated);

function isAnswer(answer) {
  return isObject(answer) && isText(answer.text) && Array.isArray(answer.tokens) && answer.tokens.every(isToken);
}

function isToken(token) {
  const { rejected } = isObject(token) ? token : {};
  const draft = rejected === null || (isObject(rejected) && isText(rejected.text) && isNumber(rejected.logprob));
  return isObject(token) && isText(token.text) && isNumber(token.origin) && isNumber(token.logprob) && draft;
}
