// What is so at a moment of a trace: pure functions over typed arrays.
//
// Knows nothing about the page. Every question about a time is answered by binary search or by
// looking at the requests alive then, so that a hundred thousand tokens cost no more than ten.
// Requests, steps and turns (one request's part in one step) are numbers; "never" is Infinity.

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float64: Float64Array };

/** Read what packing.py wrote, and add the indexes that the questions below need. */
export async function unpack(packed) {
  const names = Object.keys(packed.columns);
  const columns = await Promise.all(names.map((name) => inflate(packed.columns[name])));
  const trace = { ...packed, ...Object.fromEntries(names.map((name, place) => [name, columns[place]])) };
  delete trace.columns;
  indexSteps(trace);
  indexRequests(trace);
  return trace;
}

async function inflate({ type, bytes }) {
  const deflated = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new ARRAYS[type](await new Response(stream).arrayBuffer());
}

function indexSteps(trace) {
  const steps = trace.paid.length;
  trace.steps = steps;
  trace.starts = trace.spans.filter((_, place) => place % 2 === 0);
  trace.ends = trace.spans.filter((_, place) => place % 2 === 1);
  trace.firstTurn = new Uint32Array(steps + 1);
  trace.stepOf = new Uint32Array(trace.who.length);
  trace.stops = new Float64Array(steps);
  for (let step = 0; step < steps; step++) {
    trace.firstTurn[step + 1] = trace.firstTurn[step] + trace.turns[step];
    trace.stepOf.fill(step, trace.firstTurn[step], trace.firstTurn[step + 1]);
    // On a real clock a moment passes between two steps, in which nobody has been admitted yet.
    // Stepping stops after it: the tokens are there, and the next step has its requests.
    const next = step + 1 < steps ? trace.starts[step + 1] : trace.end;
    const moment = 0.05 * (trace.ends[step] - trace.starts[step]);
    trace.stops[step] = next <= trace.ends[step] + moment ? next : trace.ends[step];
  }
}

function indexRequests(trace) {
  const requests = trace.users.length;
  trace.requests = requests;
  // lastEnd[n]: when the last of the requests 0 … n ends. It never falls, so it can be searched.
  trace.lastEnd = new Float64Array(requests);
  trace.refusedBefore = new Uint32Array(requests + 1); // among the first so many requests
  let last = -Infinity;
  for (let request = 0; request < requests; request++) {
    last = Math.max(last, trace.ended[request]);
    trace.lastEnd[request] = last;
    trace.refusedBefore[request + 1] = trace.refusedBefore[request] + trace.refused[request];
  }
  trace.absencesFrom = offsets(trace.absences);
  trace.holdingsFrom = offsets(trace.holdings);
  // The turns of request n are turnsOf[turnsFrom[n]] … turnsOf[turnsFrom[n + 1] - 1], in order.
  trace.turnsFrom = new Uint32Array(requests + 1);
  for (const request of trace.who) trace.turnsFrom[request + 1]++;
  for (let request = 0; request < requests; request++) trace.turnsFrom[request + 1] += trace.turnsFrom[request];
  const free = trace.turnsFrom.slice();
  const tokens = new Uint32Array(requests);
  trace.turnsOf = new Uint32Array(trace.who.length);
  trace.tokensBefore = new Uint32Array(trace.who.length); // tokens that the request had before this turn
  trace.who.forEach((request, turn) => {
    trace.turnsOf[free[request]++] = turn;
    trace.tokensBefore[turn] = tokens[request];
    if (trace.token[turn]) tokens[request]++;
  });
}

/** Where those of each request begin, in columns that hold one request's after the other's. */
function offsets(counts) {
  const from = new Uint32Array(counts.length + 1);
  counts.forEach((count, request) => (from[request + 1] = from[request] + count));
  return from;
}

/** How many of the values, which never fall, are at most `limit`. */
export function countUpTo(values, limit) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Both queues and the model at a time, with everything of that time done.
 * stepsDone: steps that have ended; step: the one the model computes now, or -1 when it rests.
 * waiting: in order of arrival; running: in order of admission.
 */
export function stateAt(trace, time) {
  const stepsDone = countUpTo(trace.ends, time);
  const arrived = countUpTo(trace.arrived, time);
  const waiting = [];
  const running = [];
  for (let request = countUpTo(trace.lastEnd, time); request < arrived; request++) {
    if (trace.ended[request] <= time) continue;
    (isRunning(trace, request, time) ? running : waiting).push(request);
  }
  running.sort((one, two) => trace.admission[one] - trace.admission[two]);
  const computes = stepsDone < trace.steps && trace.starts[stepsDone] <= time;
  return { time, stepsDone, step: computes ? stepsDone : -1, arrived, waiting, running };
}

/** Admitted, and not preempted since. (Asked of those only that have not ended.) */
function isRunning(trace, request, time) {
  if (trace.admitted[request] > time) return false;
  for (let place = trace.absencesFrom[request]; place < trace.absencesFrom[request + 1]; place++) {
    if (trace.left[place] <= time && time < trace.back[place]) return false;
  }
  return true;
}

/** For each block of KV memory, how many hold it, and the last of them (or -1). */
export function blocksAt(trace, state) {
  const holders = new Uint32Array(trace.kvBlocks);
  const holder = new Int32Array(trace.kvBlocks).fill(-1);
  for (const request of state.running) {
    for (let place = trace.holdingsFrom[request]; place < trace.holdingsFrom[request + 1]; place++) {
      if (trace.taken[place] > state.time || trace.given[place] <= state.time) continue;
      holders[trace.block[place]]++;
      holder[trace.block[place]] = request;
    }
  }
  return { holders, holder };
}

/** Where one request stands: "later", "refused", "waiting", "running" or "ended". */
export function standing(trace, request, time) {
  if (trace.arrived[request] > time) return "later";
  if (trace.refused[request]) return "refused";
  if (trace.ended[request] <= time) return "ended";
  return isRunning(trace, request, time) ? "running" : "waiting";
}

/** The place in `turnsOf` behind a request's last turn among the first `stepsDone` steps. */
function turnsEnd(trace, request, stepsDone) {
  let low = trace.turnsFrom[request];
  let high = trace.turnsFrom[request + 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (trace.stepOf[trace.turnsOf[middle]] < stepsDone) low = middle + 1;
    else high = middle;
  }
  return low;
}

export function tokensAt(trace, request, stepsDone) {
  const end = turnsEnd(trace, request, stepsDone);
  if (end === trace.turnsFrom[request]) return 0;
  const turn = trace.turnsOf[end - 1];
  return trace.tokensBefore[turn] + (trace.token[turn] ? 1 : 0);
}

/** The newest `most` tokens of an answer as text: whole characters only, as its user would see it. */
export function newestText(trace, request, stepsDone, most) {
  const end = turnsEnd(trace, request, stepsDone);
  const begin = Math.max(trace.turnsFrom[request], end - most);
  let text = "";
  let bytes = [];
  const whole = () => {
    if (bytes.length) text += new TextDecoder().decode(new Uint8Array(bytes)).replace(/^\uFFFD+|\uFFFD+$/g, "");
    bytes = [];
  };
  for (let place = begin; place < end; place++) {
    const token = trace.token[trace.turnsOf[place]];
    if (!token) continue;
    const piece = trace.pieces[token - 1];
    if (Array.isArray(piece)) bytes.push(...piece);
    else {
      whole();
      text += piece;
    }
  }
  whole();
  return (tokensAt(trace, request, stepsDone) > most ? "…" : "") + text;
}

/** What a turn's cell says; the figures' words. */
export function cellLabel(trace, turn) {
  const token = trace.token[turn];
  if (!token) return trace.tokensBefore[turn] ? "lost" : "prompt";
  const piece = trace.pieces[token - 1];
  if (Array.isArray(piece)) return "½ char";
  const text = piece.replace(/^ +| +$/g, "");
  if (!text) return piece ? "␣" : "end";
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/** From seconds to model steps, as on the figures' step axis: idle time has no width. */
export function placeOf(trace, time) {
  const step = countUpTo(trace.starts, time) - 1;
  if (step < 0) return 0;
  const began = trace.starts[step];
  const ended = trace.ends[step];
  return step + (time >= ended ? 1 : (time - began) / (ended - began));
}

/**
 * The first step shown when `columns` fit and `place` must be among them. The window moves by half
 * its width at a time, so that the picture stands still while the eye follows the newest token.
 */
export function windowStart(place, columns) {
  const step = Math.max(0, Math.ceil(place) - 1);
  const half = Math.ceil(columns / 2);
  return step < columns ? 0 : (Math.floor((step - columns) / half) + 1) * half;
}

/** The turns of the steps from `first` up to `stop`, as lists by request, for the requests asked for. */
export function turnsInWindow(trace, requests, first, stop) {
  const found = new Map(requests.map((request) => [request, []]));
  const last = Math.min(stop, trace.steps);
  for (let turn = trace.firstTurn[Math.min(first, last)]; turn < trace.firstTurn[last]; turn++) {
    found.get(trace.who[turn])?.push(turn);
  }
  return found;
}

/** At most `most` requests to show, in order of arrival: who runs, who waits, who left last, who comes next. */
export function chooseRows(trace, state, most) {
  if (trace.requests <= most) return Array.from({ length: trace.requests }, (_, request) => request);
  const chosen = new Set([...state.running, ...state.waiting].slice(0, most));
  for (let request = state.arrived - 1; request >= 0 && chosen.size < most; request--) chosen.add(request);
  for (let request = state.arrived; request < trace.requests && chosen.size < most; request++) chosen.add(request);
  return [...chosen].sort((one, two) => one - two);
}

export function nextStop(trace, time) {
  const place = countUpTo(trace.stops, time);
  return place < trace.steps ? trace.stops[place] : trace.end;
}

export function previousStop(trace, time) {
  let place = countUpTo(trace.stops, time) - 1;
  while (place >= 0 && trace.stops[place] >= time) place--;
  return place >= 0 ? trace.stops[place] : trace.start;
}

/** What happened after `from`, up to and with `to`, as short sentences in order of kind. */
export function happened(trace, from, to) {
  const sentences = [];
  const before = countUpTo(trace.ends, from);
  const after = countUpTo(trace.ends, to);
  if (after - before === 1) sentences.push(stepInWords(trace, before));
  else if (after > before) sentences.push(`model steps ${before} to ${after - 1} ended`);
  const passed = (time) => time > from && time <= to;
  const arrived = countUpTo(trace.arrived, to);
  for (let request = countUpTo(trace.lastEnd, from); request < arrived; request++) {
    const user = trace.users[request];
    if (passed(trace.arrived[request])) {
      sentences.push(trace.refused[request] ? `${user} is refused: the queue is full` : `${user} arrives`);
    }
    if (trace.refused[request]) continue;
    if (passed(trace.admitted[request])) sentences.push(`${user} enters the processing queue`);
    for (let place = trace.absencesFrom[request]; place < trace.absencesFrom[request + 1]; place++) {
      if (passed(trace.left[place])) sentences.push(`${user} is preempted: others need its memory`);
      if (passed(trace.back[place])) sentences.push(`${user} enters the processing queue again`);
    }
    if (passed(trace.ended[request])) sentences.push(`${user} ends: ${reasonOf(trace, request)}`);
  }
  return sentences;
}

function stepInWords(trace, step) {
  const parts = [];
  const [first, stop] = [trace.firstTurn[step], trace.firstTurn[step + 1]];
  for (let turn = first; turn < Math.min(stop, first + 4); turn++) {
    const label = cellLabel(trace, turn);
    const got = trace.token[turn] ? `receives “${label}”` : label === "lost" ? "receives nothing" : "computes its prompt";
    parts.push(`${trace.users[trace.who[turn]]} ${got}`);
  }
  if (stop - first > 4) parts.push(`${stop - first - 4} more receive theirs`);
  const error = trace.errors[step] ? ` fails (${trace.errors[step]})` : "";
  return `model step ${step}${error}: ${parts.join(", ")}`;
}

export function reasonOf(trace, request) {
  const cause = trace.causes[request];
  return trace.reasons[trace.reason[request]] + (cause ? ` (${cause})` : "");
}
