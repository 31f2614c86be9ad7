// SPDX-License-Identifier: GPL-2.0-only
// Draws the charts of a report from the JSON that is in it; again when the colours or the width change.
"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("data").textContent);
  const HEIGHT = 240;
  const color = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const compact = (value, step, names) => {
    let place = 0, rest = Math.abs(value);
    while (rest >= step * 0.9995 && place < names.length - 1) { rest /= step; place++; }
    const digits = place === 0 && Number.isInteger(value) ? 0 : rest < 10 ? 2 : rest < 100 ? 1 : 0;
    return (value < 0 ? "-" : "") + Number(rest.toFixed(digits)) + names[place];
  };
  const seconds = s => {
    if (s === 0) return "0";
    if (s < 1) return Number((s * 1000).toPrecision(3)) + " ms";
    if (s < 120) return Number(s.toPrecision(3)) + " s";
    if (s < 7200) return Number((s / 60).toPrecision(3)) + " min";
    if (s < 172800) return Number((s / 3600).toPrecision(3)) + " h";
    return Number((s / 86400).toPrecision(3)) + " d";
  };
  const units = {
    count: v => compact(v, 1000, ["", "k", "M", "G"]),
    bytes: v => compact(v, 1024, ["B", "K", "M", "G", "T"]),
    share: v => Number((v * 100).toPrecision(3)) + " %",
  };
  const powers = Array.from({length: 50}, (_, n) => 2 ** n);
  const times = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
    ...Array.from({length: 12}, (_, n) => 86400 * 2 ** n)];
  const shown = text => value => value === null || value === undefined ? "–" : text(value);

  // The band of a line is drawn by two others; its text belongs to the line.
  function interval(spec, line, place, text) {
    const [low, high] = ["low", "high"].map(band => spec.lines.find(one => one.side === line.side && one.band === band));
    if (line.band || !low || !high || typeof place !== "number" || typeof low.y[place] !== "number") return "";
    return ` (${text(low.y[place])} to ${text(high.y[place])})`;
  }

  const decades = (u, at) => at.map(v => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9 ? v : null);

  function options(spec, width) {
    const axis = {stroke: color("dim"), grid: {stroke: color("line"), width: 1}, ticks: {stroke: color("line"), width: 1}};
    const text = units[spec.unit];
    const series = [{label: spec.log ? "after" : "time", value: (u, v) => shown(seconds)(v)}];
    const bands = [];
    for (const line of spec.lines) {
      const stroke = color(line.side.toLowerCase());
      series.push({
        label: line.label, stroke: line.band ? stroke + "66" : stroke, width: line.band || line.dashed ? 1 : 2,
        dash: line.dashed ? [6, 5] : undefined, points: {show: spec.x.length < 3},
        paths: spec.log ? uPlot.paths.stepped({align: 1}) : undefined, class: line.band ? "band" : "main",
        value: (u, v, at, place) => shown(text)(v) + interval(spec, line, place, text),
      });
      if (line.band === "high") {
        bands.push({series: [series.length - 1, series.length - 2], fill: stroke + "22"});
      }
    }
    return {
      width, height: HEIGHT, series, bands, legend: {live: true}, cursor: {y: false, drag: {x: true, y: false}},
      scales: {
        x: spec.log ? {time: false, distr: 3, range: (u, low, high) => [low, high]} : {time: false},
        y: {range: (u, low, high) => spec.unit === "share" ? [0, 1]
          : uPlot.rangeNum(Math.min(0, low ?? 0), Math.max(1, high ?? 1), {min: {pad: low < 0 ? 0.1 : 0, soft: 0, mode: 1},
            max: {pad: 0.1, soft: 1, mode: 1}})},
      },
      axes: [
        {...axis, space: 60, incrs: spec.log || spec.x[spec.x.length - 1] < 8 ? undefined : times,
          values: (u, at) => at.map(v => v === null ? null : seconds(v)),
          ...(spec.log ? {filter: decades, grid: {...axis.grid, filter: decades}, ticks: {...axis.ticks, filter: decades}} : {})},
        {...axis, size: 62, incrs: spec.unit === "bytes" ? powers : undefined, values: (u, at) => at.map(text)},
      ],
    };
  }

  let drawn = [];
  function draw() {
    for (const chart of drawn) chart.destroy();
    drawn = [];
    for (const spec of specs) {
      const place = document.getElementById("chart-" + spec.key);
      const chart = new uPlot(options(spec, place.clientWidth), [spec.x, ...spec.lines.map(line => line.y)], place);
      place.dataset.drawn = String(spec.lines.length);
      drawn.push(chart);
    }
  }
  document.getElementById("no-charts")?.remove();
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
})();
