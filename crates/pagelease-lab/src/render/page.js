"use strict";
// Position 0 is the state before the first step; position n is the state after step n.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("history").textContent);
  const last = data.steps.length;
  const loopFrom = data.loop_from === null ? null : data.loop_from + 1;
  const PLAY_MS = 900;

  // Everything of the history goes through textContent: none of it is ever read as markup.
  const make = (tag, text, parent, properties = {}) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  // A long name may be broken behind a joint, as a reader would.
  const makeName = (tag, text, parent, properties) => {
    const element = make(tag, "", parent, properties);
    for (const part of text.split(/(?<=_)/)) element.append(part, document.createElement("wbr"));
  };
  const cellsAt = (position) => (position === 0 ? data.initial : data.steps[position - 1].cells);
  const changed = (position, index) =>
    position > 0 && cellsAt(position)[index].value !== cellsAt(position - 1)[index].value;
  const changesAt = (position) => cellsAt(position).map((_, index) => index).filter((index) => changed(position, index));
  const label = (step) => (step.detail === "" ? step.name : `${step.name}: ${step.detail}`);

  // The lanes.
  const head = byId("lanes-head");
  const body = byId("lanes-body");
  make("th", "step", head, { scope: "col", className: "number" });
  for (const actor of data.actors) make("th", actor, head, { scope: "col" });
  make("th", "what changed", head, { scope: "col", className: "changes" });

  const wide = (className, text) => {
    const row = make("tr", "", body, { className });
    make("td", "", row, { className: "number" });
    return make("td", text, row, { colSpan: data.actors.length + 1 });
  };
  const rows = [];
  const links = [];
  const addRow = (position) => {
    const row = make("tr", "", body);
    row.dataset.step = position;
    if (loopFrom !== null && position >= loopFrom) row.classList.add("looped");
    make("th", position, row, { scope: "row", className: "number" });
    rows.push(row);
    return row;
  };
  const addLink = (position, text, parent) => {
    links.push(make("a", text, parent, { href: `#${position}`, className: "step", tabIndex: -1 }));
  };
  addLink(0, "at first", make("td", "", addRow(0), { colSpan: data.actors.length + 1 }));
  data.steps.forEach((step, index) => {
    const position = index + 1;
    if (position === loopFrom) wide("turn looped begin", "for ever from here");
    const row = addRow(position);
    data.actors.forEach((_, actor) => {
      const lane = make("td", "", row, { className: "lane" });
      if (actor !== step.actor) return;
      addLink(position, "", lane);
      const link = links[position];
      makeName("span", step.name, link, { className: "name" });
      if (step.detail !== "") make("span", step.detail, link, { className: "detail" }).before(" ");
      if (step.broken.length > 0) make("span", `breaks ${step.broken.join(", ")}`, link, { className: "breaks" });
    });
    const texts = changesAt(position).map((at) => `${step.cells[at].group} ${step.cells[at].name}: ${step.cells[at].value}`);
    make("td", texts.join("; "), row, { className: "changes" });
  });
  if (loopFrom !== null) make("a", `back to step ${loopFrom}, for ever`, wide("turn looped end", "… "), { href: `#${loopFrom}` });

  // The state: tables made once, so that nothing moves while one steps through.
  const slots = [];
  const tables = [];
  let table = null;
  data.initial.forEach((cell, index) => {
    if (index === 0 || data.initial[index - 1].group !== cell.group) {
      table = make("table", "", byId("groups"), { className: "group" });
      table.dataset.group = cell.group;
      make("caption", cell.group, table);
      tables.push(table);
      table = make("tbody", "", table);
    }
    const row = make("tr", "", table, { className: "cell" });
    make("th", cell.name, row, { scope: "row" });
    const value = make("td", "", row, { className: "value" });
    slots.push({ row, value, flag: make("span", "", make("td", "", row, { className: "flag" })) });
  });
  const most = Math.max(0, ...data.steps.map((_, index) => changesAt(index + 1).length));
  byId("changes").style.minHeight = `${1.5 * most}em`;
  byId("broken").hidden = data.steps.every((step) => step.broken.length === 0);

  // Stepping.
  let position = -1;
  let round = 1;
  let timer = null;

  const where = (turned) => {
    if (position === 0) return `Before the first of ${last} steps`;
    const place = `Step ${position} of ${last}`;
    if (turned) return `${place}: back to it, round ${round} of the loop`;
    if (loopFrom !== null && position >= loopFrom) {
      return `${place}, round ${round} of the loop` + (position === last ? `; then back to step ${loopFrom}, for ever` : "");
    }
    return position === last ? `${place}, the last` : place;
  };

  const show = (target, turned = false) => {
    position = target;
    if (loopFrom === null || position < loopFrom) round = 1;
    const step = position === 0 ? null : data.steps[position - 1];
    rows.forEach((row, at) => {
      row.classList.toggle("ahead", at > position);
      if (at === position) row.setAttribute("aria-current", "step");
      else row.removeAttribute("aria-current");
      // One stop for the tab key, and that where the reader is.
      links[at].tabIndex = at === position ? 0 : -1;
    });
    rows[position].scrollIntoView({ block: "nearest" });

    byId("where").textContent = where(turned);
    byId("what").textContent = step === null ? "" : `${data.actors[step.actor]}: ${label(step)}`;
    byId("broken").textContent = step === null || step.broken.length === 0 ? "" : `This step breaks ${step.broken.join(", ")}.`;
    const changes = byId("changes");
    changes.replaceChildren();
    for (const index of changesAt(position)) {
      const cell = cellsAt(position)[index];
      const item = make("li", `${cell.group} ${cell.name}: `, changes);
      make("del", cellsAt(position - 1)[index].value, item);
      make("span", " → ", item);
      make("ins", cell.value, item);
    }
    if (step !== null && changes.children.length === 0) make("li", "nothing changed", changes, { className: "none" });

    byId("state-title").textContent = position === 0 ? "State at first" : `State after step ${position}`;
    cellsAt(position).forEach((cell, index) => {
      const { row, value, flag } = slots[index];
      value.textContent = cell.value;
      const mark = changed(position, index);
      row.toggleAttribute("data-changed", mark);
      flag.textContent = mark ? "changed" : "";
    });
    for (const group of tables) group.classList.toggle("acting", step !== null && group.dataset.group === data.actors[step.actor]);
    // Not `disabled`: a button that is would swallow the arrow keys as long as it has the focus.
    byId("next").setAttribute("aria-disabled", position === last && loopFrom === null);
    byId("previous").setAttribute("aria-disabled", position === 0);
  };

  const go = (target, turned = false) => {
    show(target, turned);
    // A page inside another one may not be allowed to: the steps work without it.
    try { window.history.replaceState(null, "", `#${position}`); } catch { /* the link is lost, nothing else */ }
  };
  const next = () => {
    if (position < last) return go(position + 1);
    if (loopFrom === null) return pause();
    round += 1;
    go(loopFrom, true);
  };
  const previous = () => {
    if (position === loopFrom && round > 1) {
      round -= 1;
      return go(last);
    }
    if (position > 0) go(position - 1);
  };
  const pause = () => {
    clearInterval(timer);
    timer = null;
    byId("play").textContent = "Play";
  };
  const play = () => {
    if (timer !== null) return pause();
    if (position === last && loopFrom === null) go(0);
    timer = setInterval(next, PLAY_MS);
    byId("play").textContent = "Pause";
  };
  const jump = (target) => {
    round = 1;
    go(target);
  };

  const actions = { first: () => jump(0), previous, play, next, last: () => jump(last) };
  const keys = { ArrowRight: "next", j: "next", ArrowLeft: "previous", k: "previous", Home: "first", End: "last", " ": "play" };
  for (const [id, action] of Object.entries(actions)) {
    byId(id).addEventListener("click", () => { if (id !== "play") pause(); action(); });
  }
  document.addEventListener("keydown", (event) => {
    const name = keys[event.key];
    if (name === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    // On a button the space bar presses it.
    if (event.key === " " && event.target instanceof HTMLButtonElement) return;
    event.preventDefault();
    if (name !== "play") pause();
    actions[name]();
  });

  const fromFragment = () => {
    const number = /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : 0;
    return Math.min(number, last);
  };
  addEventListener("hashchange", () => { if (fromFragment() !== position) { pause(); jump(fromFragment()); } });
  const main = document.querySelector("main");
  main.classList.toggle("crowded", data.actors.length > 3);
  main.hidden = false;
  jump(fromFragment());
})();
