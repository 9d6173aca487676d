// The player: shows a trace in time and lets its reader move through it.
//
// What is so at a moment comes from moments.js; here it only becomes elements, a bounded number
// of them however long the run is, made once and rewritten as time passes. All text of a trace
// goes through `textContent`, so nothing in it can become part of the page.
// (Python joins both files into one module and leaves this import out.)
import {
  blocksAt, cellLabel, chooseRows, happened, newestText, nextStop, placeOf, previousStop, reasonOf, standing, stateAt,
  tokensAt, turnsInWindow, unpack, windowStart,
} from "./moments.js";

const MOST_ROWS = 8; // requests shown at once, as in the figures
const MOST_ROWS_STACKED = 4; // where two traces stand one below the other, and the controls below both
const NARROW = 1000; // pixels: less is not enough for two traces side by side
const MOST_NAMES = 6; // of each queue
const MOST_BLOCKS = 512; // of KV memory that are drawn one by one
const COLUMN = 54; // pixels that a token needs
const STRIP_POINTS = 240;
const SPEEDS = [1, 2, 5].flatMap((digit) => [-4, -3, -2, -1, 0, 1, 2, 3].map((power) => digit * 10 ** power));

/** Put a player into `element`; returns a promise of the function that takes it away again. */
export async function mount(element, data) {
  const traces = await Promise.all(data.traces.map(unpack));
  const player = new Player(data, traces);
  element.replaceChildren(player.root);
  player.seek(player.start);
  return () => player.remove();
}

/** For a static page: mount every player that is not yet mounted. */
export function mountAll(page) {
  for (const place of page.querySelectorAll("[data-servelab-player]:not([data-mounted])")) {
    place.dataset.mounted = ""; // at once: every player on the page brings this script
    const data = JSON.parse(place.querySelector('script[type="application/json"]').textContent);
    const room = make("div", "");
    mount(room, data).then(() => {
      place.querySelector("img").remove();
      place.append(room);
    });
  }
}

/** For a notebook (anywidget). */
async function render({ model, el }) {
  return mount(el, model.get("data"));
}

export default { render };

class Player {
  constructor(data, traces) {
    this.traces = traces;
    this.start = Math.min(...traces.map((trace) => trace.start));
    this.end = Math.max(...traces.map((trace) => trace.end));
    this.time = this.start;
    this.playing = false;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.speeds = speedsAround(usualSpeed(traces, this.end - this.start));
    this.build(data);
    this.listen();
  }

  build(data) {
    this.root = make("section", "servelab-player");
    this.root.tabIndex = 0;
    this.root.setAttribute("aria-label", `Player of a run. ${data.says} Space plays and pauses, the arrow keys go \
one model step, Home and End go to the beginning and the end, plus and minus change the speed.`);
    this.root.style.setProperty("--waiting", data.colours.waiting);
    this.root.style.setProperty("--accent", data.colours.users[0]);
    if (data.says) make("p", "says", this.root, data.says);
    const panes = make("div", "panes", this.root);
    this.panes = this.traces.map((trace) => new Pane(panes, trace, data.colours.users, this.start, this.end));
    const samples = this.panes.map((pane) => pane.sample());
    const top = Math.max(1, ...samples.flat().map(({ waiting, running }) => Math.max(waiting.length, running.length)));
    this.panes.forEach((pane, place) => pane.buildStrip(samples[place], top)); // on one scale, to be compared
    this.buildScrubber();
    this.buildControls(make("div", "controls", this.root));
    this.status = make("p", "status", this.root);
    this.status.setAttribute("role", "status"); // read out when it changes: only while nothing plays
    make("p", "keys", this.root, "Keys: space plays · ← → one model step · Home, End · + − speed");
  }

  /** As wide as the strip above it, so that its thumb stands under the strip's mark. */
  buildScrubber() {
    this.scrub = make("input", "scrub", this.root);
    Object.assign(this.scrub, { type: "range", min: this.start, max: this.end, step: "any" });
    this.scrub.setAttribute("aria-label", "Time");
    this.scrub.addEventListener("input", () => this.go(Number(this.scrub.value), "at"));
  }

  buildControls(bar) {
    this.playButton = button(bar, "play", "Play", () => this.toggle());
    button(bar, "", "◂ Step", () => this.step(-1)).setAttribute("aria-label", "One model step back");
    button(bar, "", "Step ▸", () => this.step(1)).setAttribute("aria-label", "One model step forward");
    this.clock = make("span", "clock", bar);
    const speed = make("span", "speed", bar);
    button(speed, "", "−", () => this.changeSpeed(-1)).setAttribute("aria-label", "Slower");
    this.speedLabel = make("span", "", speed);
    button(speed, "", "+", () => this.changeSpeed(1)).setAttribute("aria-label", "Faster");
    this.changeSpeed(0);
  }

  listen() {
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.resized = new ResizeObserver(() => this.layOut());
    this.resized.observe(this.root);
    this.themed = new MutationObserver(() => this.layOut());
    this.themed.observe(document.body, { attributes: true });
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.onScheme = () => this.layOut();
    this.scheme.addEventListener("change", this.onScheme);
  }

  remove() {
    this.playing = false;
    this.resized.disconnect();
    this.themed.disconnect();
    this.scheme.removeEventListener("change", this.onScheme);
    this.root.remove();
  }

  layOut() {
    if (!this.root.isConnected) return; // a front end may fill its page later; being put there is a change of size
    this.root.classList.toggle("dark", isDarkBehind(this.root));
    const narrow = this.root.clientWidth < NARROW;
    this.root.classList.toggle("narrow", narrow);
    for (const pane of this.panes) pane.layOut(narrow && this.panes.length > 1 ? MOST_ROWS_STACKED : MOST_ROWS);
    this.draw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    // JupyterLab takes plain letters for commands ("x" cuts the cell): here they were not meant so.
    if (event.key.length === 1) event.stopPropagation();
    const onButton = event.target.tagName === "BUTTON";
    const actions = {
      " ": onButton ? null : () => this.toggle(), // a button with the focus keeps its own space bar
      ArrowRight: () => this.step(1),
      ArrowLeft: () => this.step(-1),
      Home: () => this.go(this.start, "at the beginning,"),
      End: () => this.go(this.end, "at the end,"),
      "+": () => this.changeSpeed(1),
      "=": () => this.changeSpeed(1), // the same key without shift on many keyboards
      "-": () => this.changeSpeed(-1),
      "−": () => this.changeSpeed(-1),
    };
    if (!actions[event.key]) return;
    actions[event.key]();
    event.preventDefault();
    event.stopPropagation();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  play() {
    if (this.time >= this.end) this.time = this.start;
    this.setPlaying(true);
    write(this.status, "playing");
    let before = performance.now();
    const frame = (now) => {
      if (!this.playing) return;
      this.time = Math.min(this.end, this.time + (Math.max(0, now - before) / 1000) * this.speeds.values[this.speeds.at]);
      before = now;
      this.draw();
      if (this.time >= this.end) this.pause();
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  pause() {
    this.setPlaying(false);
    this.tell(this.time >= this.end ? "at the end," : "paused at");
  }

  setPlaying(playing) {
    this.playing = playing;
    write(this.playButton, playing ? "Pause" : "Play");
    this.playButton.classList.toggle("pause", playing);
  }

  step(direction) {
    this.setPlaying(false);
    const from = this.time;
    const stops = this.traces.map((trace) => (direction > 0 ? nextStop : previousStop)(trace, from));
    if (direction < 0) return this.go(Math.max(this.start, Math.min(from, Math.max(...stops))), "back at");
    // A trace that is over names its end, which lies behind: the other one sets the pace.
    const ahead = stops.filter((stop) => stop > from);
    if (!ahead.length) return this.go(this.end, "at the end,");
    this.seek(Math.min(...ahead));
    const both = this.traces.length > 1;
    const told = this.traces.map((trace) => {
      const sentences = happened(trace, from, this.time);
      const more = sentences.length > 6 ? `; and ${sentences.length - 6} more` : "";
      return sentences.length ? (both ? `${shortPolicy(trace)}: ` : "") + sentences.slice(0, 6).join("; ") + more : "";
    });
    return write(this.status, `${this.seconds()}: ${told.filter(Boolean).join(". ") || "nothing happened"}.`);
  }

  go(time, how) {
    this.setPlaying(false);
    this.seek(time);
    this.tell(how);
  }

  seek(time) {
    this.time = time;
    this.draw();
  }

  tell(how) {
    const queues = this.panes.map(({ trace, state }) => {
      const both = this.traces.length > 1 ? `${shortPolicy(trace)}: ` : "";
      return `${both}${state.waiting.length} waiting, ${state.running.length} running`;
    });
    write(this.status, `${how} ${this.seconds()}: ${queues.join("; ")}.`);
  }

  seconds() {
    return `${inSeconds(this.time, this.end)} s`;
  }

  changeSpeed(by) {
    const speeds = this.speeds;
    speeds.at = Math.max(0, Math.min(speeds.values.length - 1, speeds.at + by));
    const value = speeds.values[speeds.at];
    write(this.speedLabel, `speed ${value >= 1 ? value : Number(value.toPrecision(1))}×`);
    if (by) write(this.status, `speed ${value}×: a second of the run takes ${Number((1 / value).toPrecision(2))} s`);
  }

  draw() {
    const shown = this.calm.matches && this.playing ? this.lastStop() : this.time;
    for (const pane of this.panes) pane.draw(shown, !this.calm.matches);
    if (Number(this.scrub.value) !== this.time) this.scrub.value = this.time;
    this.scrub.setAttribute("aria-valuetext", `${this.seconds()} of ${inSeconds(this.end, this.end)} s`);
    write(this.clock, `${inSeconds(this.time, this.end)} of ${inSeconds(this.end, this.end)} s`);
  }

  /** For readers who asked for less motion the picture changes only when a step has ended. */
  lastStop() {
    const stops = this.traces.map((trace) => previousStop(trace, this.time));
    return this.time >= this.end ? this.end : Math.max(...stops);
  }
}

/** One trace: its queues, its rows and its strip. */
class Pane {
  constructor(parent, trace, colours, start, end) {
    this.trace = trace;
    this.colours = colours;
    this.span = [start, end];
    this.columns = 1;
    this.root = make("div", "pane", parent);
    const caption = make("p", "caption", this.root);
    make("b", "", caption, trace.policy);
    make("span", "", caption, ` · ${trace.model} · ${trace.evidence}`);
    this.buildFlow(make("div", "flow", this.root));
    this.memory = trace.kvBlocks && trace.kvBlocks <= MOST_BLOCKS ? new Memory(this.root, trace, colours) : null;
    this.numbers = make("div", "numbers", this.root);
    this.numbers.setAttribute("aria-hidden", "true");
    this.rows = Array.from({ length: Math.min(MOST_ROWS, trace.requests) }, () => new Row(this.root, trace, colours));
    this.more = make("p", "more", this.root);
    this.state = stateAt(trace, start);
    this.layOut(MOST_ROWS);
  }

  buildFlow(flow) {
    const { capacity, maxQueueSize } = this.trace;
    this.waiting = new Queue(flow, "request queue", "waiting", `max_queue_size ${maxQueueSize}`, this);
    make("span", "arrow", flow, "→").setAttribute("aria-hidden", "true");
    this.running = new Queue(flow, "processing queue", "running", `limit ${capacity}`, this);
    make("span", "arrow", flow, "→").setAttribute("aria-hidden", "true");
    const model = make("div", "box", flow);
    this.modelTitle = make("p", "title", model);
    this.modelCount = make("p", "count", model);
    this.modelWork = make("p", "", model);
    this.modelPaid = make("p", "limit", model);
  }

  /** The queues at moments spread over the whole run: a long run costs no more than a short one. */
  sample() {
    const [start, end] = this.span;
    return Array.from({ length: STRIP_POINTS }, (_, point) =>
      stateAt(this.trace, start + ((end - start) * (point + 0.5)) / STRIP_POINTS));
  }

  buildStrip(states, top) {
    const strip = make("div", "strip", this.root);
    strip.setAttribute("aria-hidden", "true");
    const path = (count) => states.map((state, point) =>
      `L${point},${1 - count(state) / top}L${point + 1},${1 - count(state) / top}`).join("");
    const svg = drawn("svg", strip, { viewBox: `0 -0.08 ${STRIP_POINTS} 1.12`, preserveAspectRatio: "none" });
    drawn("path", svg, { class: "area", d: `M0,1${path((state) => state.waiting.length)}L${STRIP_POINTS},1Z` });
    drawn("path", svg, { class: "line", d: `M${path((state) => state.running.length).slice(1)}` });
    this.head = make("div", "head", strip);
    const legend = make("p", "legend", this.root);
    make("span", "", legend, `over the seconds of the run (red: now), 0 to ${top} requests:`);
    make("span", "swatch area", legend);
    make("span", "", legend, "waiting");
    make("span", "swatch line", legend);
    make("span", "", legend, `running (limit ${this.trace.capacity})`);
    this.tally = make("span", "tally", legend);
  }

  layOut(mostRows) {
    this.mostRows = mostRows;
    this.rows.forEach((row, number) => (row.root.hidden = number >= mostRows));
    const width = this.rows[0]?.lane.clientWidth ?? 0;
    this.columns = Math.max(3, Math.min(24, Math.floor(width / COLUMN)));
    this.numbers.replaceChildren(...Array.from({ length: this.columns + 1 }, () => make("span", "")));
    for (const row of this.rows) row.setColumns(this.columns);
  }

  draw(time, moving) {
    const trace = this.trace;
    const state = (this.state = stateAt(trace, time));
    const place = placeOf(trace, time);
    const shownUpTo = state.step >= 0 ? state.step + 1 : Math.ceil(place);
    const first = windowStart(shownUpTo, this.columns);
    const requests = chooseRows(trace, state, this.mostRows);
    const turns = turnsInWindow(trace, requests, first, shownUpTo);
    const view = { state, place, first, columns: this.columns, moving };
    requests.forEach((request, number) => this.rows[number].draw(request, turns.get(request), view));
    this.drawNumbers(first);
    this.waiting.draw(state.waiting);
    this.running.draw(state.running);
    this.memory?.draw(state);
    this.drawModel(state);
    this.drawTally(state, requests);
    const [start, end] = this.span;
    this.head.style.left = `${end > start ? (100 * (time - start)) / (end - start) : 0}%`;
  }

  drawNumbers(first) {
    const marks = this.numbers.children;
    write(marks[0], "model step");
    for (let column = 0; column < this.columns; column++) write(marks[column + 1], `${first + column}`);
  }

  drawModel({ step, stepsDone }) {
    const trace = this.trace;
    if (step < 0) {
      write(this.modelTitle, "model");
      write(this.modelCount, stepsDone >= trace.steps ? `done after ${stepsDone} steps` : "rests");
      write(this.modelPaid, "");
      write(this.modelWork, "");
      return;
    }
    const [begin, stop] = [trace.firstTurn[step], trace.firstTurn[step + 1]];
    let tokens = 0;
    for (let turn = begin; turn < stop; turn++) tokens += trace.computed[turn];
    write(this.modelTitle, `model step ${step} of ${trace.steps}`);
    write(this.modelCount, `computes ${counted(tokens, "token")}`);
    write(this.modelPaid, `${trace.paid[step]} paid`);
    const users = Array.from(trace.who.subarray(begin, Math.min(stop, begin + 3)), (request) => trace.users[request]);
    const more = stop - begin > 3 ? ` and ${stop - begin - 3} more` : "";
    write(this.modelWork, `of ${users.join(", ")}${more}`);
  }

  drawTally(state, requests) {
    const trace = this.trace;
    const hidden = trace.requests - requests.length;
    write(this.more, hidden ? `${counted(hidden, "more request")} not shown` : "");
    const refused = trace.refusedBefore[state.arrived];
    const ended = state.arrived - refused - state.waiting.length - state.running.length;
    write(this.tally, `${ended} ended · ${refused} refused · ${trace.requests - state.arrived} to come`);
  }
}

/** KV memory, block by block: each in its holder's colour, striped where several share it. */
class Memory {
  constructor(parent, trace, colours) {
    this.trace = trace;
    this.colours = colours;
    const box = make("div", "memory", parent);
    this.says = make("p", "", box);
    const blocks = make("div", "blocks", box);
    blocks.setAttribute("aria-hidden", "true"); // the sentence above says how many
    this.blocks = Array.from({ length: trace.kvBlocks }, () => make("span", "block", blocks));
  }

  draw(state) {
    const { trace, colours } = this;
    const { holders, holder } = blocksAt(trace, state);
    const held = holders.filter((count) => count > 0).length;
    const shared = holders.filter((count) => count > 1).length;
    const room = `KV memory: ${held} of ${counted(trace.kvBlocks, "block")} held, ${trace.blockSize} tokens each`;
    write(this.says, room + (shared ? `; striped: ${shared} shared` : ""));
    this.blocks.forEach((block, number) => {
      paint(block, holder[number] < 0 ? "transparent" : colours[trace.colour[holder[number]]]);
      block.classList.toggle("shared", holders[number] > 1);
    });
  }
}

/** The names of those in one queue, in its order. */
class Queue {
  constructor(parent, title, verb, limit, pane) {
    this.pane = pane;
    this.verb = verb;
    const box = make("div", "box", parent);
    make("p", "title", box, title);
    this.count = make("p", "count", box);
    make("p", "limit", box, limit);
    const names = make("p", "names", box);
    this.names = Array.from({ length: MOST_NAMES + 1 }, () => make("span", "name", names));
  }

  draw(requests) {
    const { trace, colours } = this.pane;
    write(this.count, `${requests.length} ${this.verb}`);
    this.names.forEach((name, place) => {
      const request = place < MOST_NAMES ? requests[place] : undefined;
      const more = place === MOST_NAMES && requests.length > MOST_NAMES ? `+${requests.length - MOST_NAMES}` : "";
      write(name, request === undefined ? more : trace.users[request]);
      paint(name, request === undefined ? "transparent" : colours[trace.colour[request]]);
      name.hidden = request === undefined && !more;
    });
  }
}

/** One request: who asks, how things stand, its latest turns on the step axis, and its text. */
class Row {
  constructor(parent, trace, colours) {
    this.trace = trace;
    this.colours = colours;
    this.cells = [];
    this.root = make("div", "row", parent);
    const who = make("div", "who", this.root);
    this.name = make("b", "", who);
    this.state = make("span", "state", who);
    this.prompt = make("div", "prompt", who);
    const answer = make("div", "answer", this.root);
    this.lane = make("div", "lane", answer);
    this.lane.setAttribute("aria-hidden", "true"); // the text below says the same, in order
    this.line = make("div", "line", this.lane);
    this.wait = make("div", "wait", this.lane);
    this.waitLabel = make("span", "", this.wait);
    this.arrival = make("div", "arrival", this.lane);
    const text = make("div", "text", answer);
    this.text = make("span", "", text);
    this.textKey = "";
  }

  setColumns(columns) {
    while (this.cells.length > columns) this.cells.pop().root.remove();
    while (this.cells.length < columns) {
      const root = make("div", "cell", this.lane);
      const fill = make("div", "fill", root);
      this.cells.push({ root, fill, label: make("span", "", root) });
    }
    this.cells.forEach(({ root }, column) => {
      root.style.left = `${(100 * column) / columns}%`;
      root.style.width = `calc(${100 / columns}% - 2px)`;
    });
    this.textKey = "";
  }

  draw(request, turns, view) {
    const trace = this.trace;
    const time = view.state.time;
    const stands = standing(trace, request, time);
    paint(this.root, this.colours[trace.colour[request]]);
    if (this.root.dataset.stands !== stands) this.root.dataset.stands = stands;
    write(this.name, trace.users[request]);
    write(this.state, this.inWords(request, stands, view.state));
    write(this.prompt, trace.prompts[request] ? `“${trace.prompts[request]}”` : "");
    this.prompt.title = trace.prompts[request];
    this.drawText(request, stands, view);
    this.drawCells(turns, view);
    this.drawSpans(request, stands, view);
  }

  inWords(request, stands, state) {
    const tokens = counted(tokensAt(this.trace, request, state.stepsDone), "token");
    switch (stands) {
      case "later": return "not yet here";
      case "refused": return "refused: the queue is full";
      case "waiting": return this.trace.admitted[request] <= state.time ? `preempted, ${tokens}` : "waiting";
      case "running": return `running, ${tokens}`;
      default: return `ended: ${reasonOf(this.trace, request)}, ${tokens}`;
    }
  }

  drawText(request, stands, { state, columns }) {
    const key = `${request} ${state.stepsDone}`;
    if (key === this.textKey) return;
    this.textKey = key;
    const arrived = stands !== "later" && stands !== "refused";
    const text = arrived ? newestText(this.trace, request, state.stepsDone, 60) : "";
    write(this.text, text.trimStart().replaceAll("\n", " ↵ "));
    this.text.parentElement.classList.toggle("long", widthOf(text) > (columns * COLUMN) / 7.5);
  }

  drawCells(turns, { state, place, first, moving }) {
    const trace = this.trace;
    const byColumn = new Map(turns.map((turn) => [trace.stepOf[turn] - first, turn]));
    this.cells.forEach(({ root, fill, label }, column) => {
      const turn = byColumn.get(column);
      if (root.hidden !== (turn === undefined)) root.hidden = turn === undefined;
      if (turn === undefined) return;
      const computing = trace.stepOf[turn] >= state.stepsDone;
      const says = computing ? "" : cellLabel(trace, turn);
      const kind = `cell${computing ? " computing" : ""}${isPrompt(trace, turn) ? " prompted" : ""}`;
      if (root.className !== kind) root.className = kind;
      write(label, computing && isPrompt(trace, turn) ? "prompt" : says);
      if (computing) fill.style.width = moving ? `${100 * Math.max(0, place - first - column)}%` : "0";
    });
  }

  /** The wait, the time in the processing queue, and the arrival, on the lane's axis. */
  drawSpans(request, stands, { state, place, first, columns }) {
    const trace = this.trace;
    const at = (time) => (Math.min(placeOf(trace, Math.min(time, state.time)), place) - first) / columns;
    const arrived = at(trace.arrived[request]);
    const begun = at(Math.min(trace.admitted[request], trace.ended[request]));
    const here = stands !== "later" && stands !== "refused";
    const admitted = here && trace.admitted[request] <= state.time;
    span(this.wait, arrived, begun, here);
    const waited = (Math.min(begun, 1) - Math.max(arrived, 0)) * columns * COLUMN;
    write(this.waitLabel, waited > 185 ? "waits in the request queue" : waited > 45 ? "waits" : "");
    span(this.line, begun, at(trace.ended[request]), admitted);
    const marked = stands !== "later" && arrived > 0 && arrived <= 1;
    this.arrival.hidden = !marked;
    if (!marked) return;
    this.arrival.style.left = `${100 * arrived}%`;
    write(this.arrival, stands === "refused" ? "✕ refused" : "");
    this.arrival.classList.toggle("leftward", arrived > 0.75);
  }
}

function span(element, from, to, there) {
  const left = Math.max(from, 0);
  const width = Math.min(to, 1) - left;
  const hidden = !there || width < 0.004; // what is narrower is not waiting but being let in
  if (element.hidden !== hidden) element.hidden = hidden;
  if (hidden) return;
  element.style.left = `${100 * left}%`;
  element.style.width = `${100 * width}%`;
}

function isPrompt(trace, turn) {
  return trace.tokensBefore[turn] === 0;
}

function make(tag, className, parent, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  parent?.append(element);
  return element;
}

function drawn(tag, parent, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

function button(parent, className, text, press) {
  const element = make("button", className, parent, text);
  element.type = "button";
  element.addEventListener("click", press);
  return element;
}

/** Writing what is there already would cost a layout. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function paint(element, colour) {
  if (element.dataset.colour === colour) return;
  element.dataset.colour = colour;
  element.style.setProperty("--user", colour);
}

function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function shortPolicy(trace) {
  return trace.policy.split("(")[0];
}

function inSeconds(time, end) {
  return time.toFixed(end >= 100 ? 1 : end >= 1 ? 2 : end >= 0.1 ? 3 : 5);
}

/** Roughly how many letters wide; Chinese and Japanese characters count twice. */
function widthOf(text) {
  let width = 0;
  for (const character of text) width += character.codePointAt(0) > 0x2e7f ? 2 : 1;
  return width;
}

/** The speed at which a run takes some seconds: a few steps in a second, but no more than twenty seconds. */
function usualSpeed(traces, duration) {
  const steps = Math.max(...traces.map((trace) => trace.steps));
  const wished = Math.max(4, Math.min(20, steps / 4));
  return Math.max(1e-4, duration / wished);
}

function speedsAround(usual) {
  const sorted = [...SPEEDS].sort((one, two) => one - two);
  const nearest = sorted.reduce((best, speed) =>
    Math.abs(Math.log(speed / usual)) < Math.abs(Math.log(best / usual)) ? speed : best);
  const values = sorted.filter((speed) => speed >= Math.min(0.1, nearest / 10) && speed <= Math.max(10, nearest * 10));
  return { values, at: values.indexOf(nearest) };
}

/** Whether the page is dark where the player stands: no page tells its theme in the same way. */
function isDarkBehind(element) {
  for (let one = element.parentElement; one; one = one.parentElement) {
    const [red, green, blue, alpha = 1] = getComputedStyle(one).backgroundColor.match(/[\d.]+/g).map(Number);
    if (alpha > 0) return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  }
  const scheme = getComputedStyle(document.documentElement).colorScheme;
  return scheme.includes("dark") && (!scheme.includes("light") || matchMedia("(prefers-color-scheme: dark)").matches);
}
