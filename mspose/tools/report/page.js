"use strict";
// Draws the diagrams of the page from the numbers in it. A plot is drawn when it comes near the window, and a 3-D plot
// is given up when it leaves it: browsers keep few WebGL contexts alive.
(() => {
  const groups = JSON.parse(document.getElementById("data").textContent);
  const KINDS = {f4: Float32Array, u1: Uint8Array, u2: Uint16Array};
  const INK = "#1d2630", SOFT = "#5c6873", RULE = "#e6eaee", TRUTH = "#8a949e";
  // the buttons are named one by one: plotly's own choice has one that uploads the plot
  const BASE = {responsive: true, displaylogo: false, plotlyServerURL: ""};
  const CONFIG = {...BASE, modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]]};
  const CONFIG_3D = {...BASE, modeBarButtons: [["toImage", "orbitRotation", "tableRotation", "resetCameraDefault3d"]]};
  const SVG_POINTS = 2500; // beyond these the plane is drawn with WebGL too, where there is any
  const WEBGL = Boolean(document.createElement("canvas").getContext("webgl"));

  const numbers = ({t, b}) => {
    const text = atob(b), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new KINDS[t](bytes.buffer);
  };
  // plotly reads a few HTML tags in its texts; names are no HTML
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const narrow = () => window.innerWidth < 640;
  const digits = (value) => Number(value.toPrecision(3)).toString();

  const chosen = (group, name) => {
    const select = document.querySelector(`select[data-choice="${name}"][data-group="${group}"]`);
    return select ? Number(select.value) : 0;
  };
  const shown = (group, variant) => {
    const box = document.querySelector(`input[data-variant="${variant}"][data-group="${group}"]`);
    return !box || box.checked;
  };

  // 0.01, 0.02, 0.05, 0.1: written out, where plotly would write the first digit alone
  const logAxis = (title, low, high, more) => {
    const ticks = [], decades = Math.log10(high / low), every = Math.max(1, Math.ceil(decades / 8));
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += every) {
      ticks.push(...(decades > 2.5 ? [1] : [1, 2, 5]).map((first) => Number((first * 10 ** power).toPrecision(1))));
    }
    const words = ticks.map((value) => value < 1e5 ? String(value) : value.toExponential().replace("+", ""));
    return axis(title, {type: "log", tickvals: ticks, ticktext: words, range: [Math.log10(low), Math.log10(high)], ...more});
  };
  const bar = (title, more) => narrow()
    ? {title: {text: title, side: "top"}, thickness: 10, orientation: "h", y: 1.02, yanchor: "bottom", len: 1, ...more}
    : {title: {text: title, side: "right"}, thickness: 12, ...more};
  const axis = (title, more) => ({title: {text: title, standoff: 8}, gridcolor: RULE, zeroline: false, linecolor: "#b8c1ca",
    ticks: "outside", tickcolor: "#b8c1ca", automargin: "left", exponentformat: "power", ...more});
  const layout = (x, y, more) => ({margin: {l: 54, r: 14, t: 14, b: 46}, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    font: {family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size: 12, color: INK},
    xaxis: x, yaxis: y, hovermode: "closest", showlegend: false, hoverlabel: {align: "left"},
    legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: {size: 11}}, ...more});

  // ---- errors -------------------------------------------------------------------------------------------------
  const AXES = {position: ["position error", "m"], orientation: ["orientation error", "°"]};

  // the first option is the last place: the mean over scenes where there are several
  const placeOf = (group, data) => (chosen(group, "place") + data.places.length - 1) % data.places.length;

  // what is overlaid: the runs at one place; of a single run and all scenes, its scenes and their mean
  const overlaid = (group, data) => {
    const place = placeOf(group, data);
    const several = data.places.length > 1 && place === data.places.length - 1;
    if (data.runs.length === 1 && several) {
      return data.places.map((name, i) => i === place
        ? {name, place, run: 0, look: {color: "#000", dash: "solid", width: 3}}
        : {name, place: i, run: 0, look: {...data.palette[i % data.palette.length], width: 1.5}});
    }
    return data.runs.flatMap((run, i) => shown(group, run.variant)
      ? [{name: run.label, place, run: i, look: {color: run.color, dash: run.dash, width: 2}}] : []);
  };

  const thresholdLines = (data, which, top) => [...new Set(data.thresholds.map((pair) => pair[which]))]
    .filter((value) => value <= top)
    .map((value) => ({type: "line", x0: value, x1: value, y0: 0, y1: 1, yref: "paper",
      line: {color: "#8a949e", width: 1, dash: "dot"}, layer: "below"}));

  const recall = (name, which) => (element, group, data) => {
    const [title, unit] = AXES[name], place = placeOf(group, data);
    const x = data.errors[place].curves[which].x;
    const traces = overlaid(group, data).flatMap((item) => {
      const curve = data.errors[item.place].curves[which], y = curve.y[item.run];
      return y ? [{x: curve.x, y, name: plain(item.name), mode: "lines", line: item.look,
        hovertemplate: `${plain(item.name)}<br>%{y:.1f} % within %{x:.3~g} ${unit}<extra></extra>`}] : [];
    });
    Plotly.react(element, traces, layout(axis(`${title} (${unit})`, {range: [0, x[x.length - 1]]}),
      axis("frames within (%)", {range: [0, 101]}),
      {shapes: thresholdLines(data, which, x[x.length - 1])}), CONFIG);
    const entries = document.querySelector(`[data-legend="places"][data-group="${group}"]`);
    if (entries) entries.hidden = traces.length < 2;
  };

  // the first bin holds what is smaller too
  const binsOf = (edges, unit) => edges.slice(1).map((high, i) =>
    `${i ? `from ${digits(edges[i])} to` : "up to"} ${digits(high)} ${unit}`);
  const histogram = (name, which) => (element, group, data) => {
    const [title, unit] = AXES[name], place = placeOf(group, data), medians = [];
    const {edges, y: all} = data.errors[place].histograms[which];
    // seeds of a variant are one line, their mean
    const variants = new Map();
    data.runs.forEach((run, i) => {
      if (!all[i] || !shown(group, run.variant)) return;
      variants.set(run.variant, [...(variants.get(run.variant) || []), i]);
    });
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const traces = [...variants.values()].flatMap((runs) => {
      const y = all[runs[0]].map((_, bin) => mean(runs.map((run) => all[run][bin])));
      const look = data.runs.length === 1 ? {color: "#000", dash: "solid"} : data.runs[runs[0]];
      const median = Math.max(edges[0], mean(runs.map((run) => data.errors[place].medians[run][which])));
      const label = plain(data.runs[runs[0]].group), bins = binsOf(edges, unit);
      medians.push({type: "line", x0: median, x1: median, y0: 0, y1: 1, yref: "paper",
        line: {color: look.color, width: 1.5, dash: look.dash}});
      if (data.runs.length === 1) {
        return [{type: "bar", y, x: y.map((_, i) => (edges[i] + edges[i + 1]) / 2), width: y.map((_, i) => edges[i + 1] - edges[i]),
          marker: {color: "#7fb3d3", line: {color: "#fff", width: .5}}, customdata: bins,
          hovertemplate: "%{y:.1f} % %{customdata}<extra></extra>"}];
      }
      return [{x: edges, y: [...y, 0], name: label, mode: "lines", line: {color: look.color, dash: look.dash, shape: "hv", width: 1.8},
        customdata: [...bins, ""], hovertemplate: `${label}<br>%{y:.1f} % %{customdata}<extra></extra>`}];
    });
    Plotly.react(element, traces, layout(logAxis(`${title} (${unit})`, edges[0], edges[edges.length - 1]),
      axis("frames (%)", {rangemode: "tozero"}), {shapes: medians, bargap: 0}), CONFIG);
  };

  const recallMap = (element, group, data) => {
    const run = chosen(group, "map-run"), {x, y, z} = data.errors[placeOf(group, data)].map;
    if (!z[run]) return say(element, "this run has no frames of the scene");
    const flat = numbers(z[run]), rows = y.map((_, i) => Array.from(flat.slice(i * x.length, (i + 1) * x.length)));
    const pairs = data.thresholds.filter(([m, deg]) => m <= x[x.length - 1] && deg <= y[y.length - 1]);
    const near = (values, value) => values.reduce((best, v, i) => Math.abs(Math.log(v / value)) < Math.abs(Math.log(values[best] / value)) ? i : best, 0);
    Plotly.react(element, [
      {type: "heatmap", x, y, z: rows, zmin: 0, zmax: 100, colorscale: "Viridis", zsmooth: "best", colorbar: bar("frames (%)"),
        hovertemplate: "%{z} % within %{x:.3~g} m and %{y:.3~g}°<extra></extra>"},
      {x: pairs.map((pair) => pair[0]), y: pairs.map((pair) => pair[1]), mode: "markers",
        text: pairs.map(([m, deg]) => `about ${rows[near(y, deg)][near(x, m)]} % within ${m} m and ${deg}°`), hoverinfo: "text",
        marker: {symbol: "diamond", size: 10, color: "#fff", line: {color: "#000", width: 1.5}}},
    ], layout(logAxis("within (m)", x[0], x[x.length - 1], {showgrid: false}),
      logAxis("within (°)", y[0], y[y.length - 1], {showgrid: false})), CONFIG);
  };

  // ---- trajectories -------------------------------------------------------------------------------------------
  const trajectoryOf = (group, data) => {
    const run = data.moving[chosen(group, "run")], scene = data.scenes[chosen(group, "scene")], which = chosen(group, "error");
    const found = data.trajectories.runs[run][scene];
    if (!found) return null;
    const set = data.trajectories.sets[found.set], errors = found.errors.map(numbers), predicted = numbers(found.predicted);
    // the same colours for all runs: up to the error that one frame in twenty exceeds
    const all = data.trajectories.runs.flatMap((of) => of[scene] ? Array.from(numbers(of[scene].errors[which])) : []).sort((a, b) => a - b);
    const words = set.names.map((name, i) => {
      const other = data.trajectories.predicted[predicted[i]];
      const wrong = other !== undefined && other !== scene ? `<br>taken for ${plain(other)}` : "";
      return `${plain(name)}<br>${digits(errors[0][i])} m, ${digits(errors[1][i])}°${wrong}`;
    });
    return {set, words, run: data.runs[run].label, truth: numbers(set.truth), estimate: numbers(found.estimate), errors: errors[which],
      top: all[Math.floor(.95 * (all.length - 1))] || 1, unit: which ? "°" : "m", what: which ? "orientation" : "position"};
  };
  const column = (values, k) => Array.from({length: values.length / 3}, (_, i) => values[3 * i + k]);
  const joined = (a, b) => a.flatMap((value, i) => [value, b[i], null]);
  const marker = (found, size) => ({size, color: Array.from(found.errors), colorscale: "Viridis", reversescale: true, cmin: 0,
    cmax: found.top, line: {color: "rgba(0,0,0,.35)", width: .5},
    colorbar: bar(`${found.what} error (${found.unit})`)});
  const name = (set, k) => `${"xyz"[k]} (m)` + (set.origin[k] ? ` from ${set.origin[k]}` : "");
  const traces = (found, axes, kind, sizes) => {
    const letters = ["x", "y", "z"], place = (values) => Object.fromEntries(axes.map((k, i) => [letters[i], column(values, k)]));
    const segments = Object.fromEntries(axes.map((k, i) => [letters[i], joined(column(found.truth, k), column(found.estimate, k))]));
    return [
      {type: kind, mode: "lines", ...segments, line: {color: "#c3cad1", width: 1}, hoverinfo: "skip", name: "error"},
      {type: kind, mode: "markers", ...place(found.truth), marker: {size: sizes[0], color: TRUTH}, text: found.words, hoverinfo: "text", name: "truth"},
      {type: kind, mode: "markers", ...place(found.estimate), marker: marker(found, sizes[1]), text: found.words, hoverinfo: "text", name: "estimate"},
    ];
  };
  const NONE = "this run has no poses in the scene";
  // where a few estimates are so far away that nothing else would be seen, a window without them
  const windowOf = (found) => {
    const bounds = [0, 1, 2].map((k) => column(found.truth, k).reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]));
    const size = Math.max(...bounds.map(([low, high]) => high - low)), reach = 5 * size;
    const count = found.estimate.length / 3, inside = Array.from({length: count}, (_, i) =>
      bounds.every(([low, high], k) => found.estimate[3 * i + k] > low - reach && found.estimate[3 * i + k] < high + reach));
    const outside = inside.filter((here) => !here).length;
    if (!size || !outside || outside > count / 2) return {ranges: [], inside, outside: 0};
    const ranges = bounds.map((of, k) => {
      const [low, high] = column(found.estimate, k).reduce(([a, b], v, i) => inside[i] ? [Math.min(a, v), Math.max(b, v)] : [a, b], of);
      const pad = .06 * (high - low) + .02 * size;
      return [low - pad, high + pad];
    });
    return {ranges, inside, outside};
  };

  const plane = (element, group, data) => {
    const found = trajectoryOf(group, data);
    if (!found) return say(element, NONE);
    const {plane: [a, b], names, scene} = found.set, kind = WEBGL && names.length > SVG_POINTS ? "scattergl" : "scatter";
    const line = document.querySelector(`[data-say="trajectory"][data-group="${group}"]`), {ranges, outside} = windowOf(found);
    const beyond = outside ? ` ${outside} of the estimates lie so far away that they are outside: zoom out for them in the view from above.` : "";
    line.textContent = `${names.length} frames of ${scene}, ${found.run}.${beyond}`;
    // equal scales in both directions, whatever the shape of the window
    Plotly.react(element, traces(found, [a, b], kind, [4, 7]), layout(axis(name(found.set, a), {range: ranges[a]}),
      axis(name(found.set, b), {scaleanchor: "x", scaleratio: 1, range: ranges[b]}), {dragmode: "pan"}), CONFIG);
  };

  const space = (element, group, data) => {
    const found = trajectoryOf(group, data);
    if (!found) return say(element, NONE);
    const {ranges, inside, outside} = windowOf(found);
    // what lies outside would be drawn all the same, across everything
    if (outside) found.estimate = found.estimate.map((value, i) => inside[Math.floor(i / 3)] ? value : NaN);
    const box = (k) => ({title: {text: name(found.set, k)}, range: ranges[k], exponentformat: "power", gridcolor: "#d5dbe1", backgroundcolor: "#fff", zeroline: false, showspikes: false});
    Plotly.react(element, traces(found, [0, 1, 2], "scatter3d", [2, 4]), layout({}, {}, {margin: {l: 0, r: 0, t: 0, b: 0},
      scene: {xaxis: box(0), yaxis: box(1), zaxis: box(2), aspectmode: "data",
        camera: {eye: narrow() ? {x: 1.8, y: 1.8, z: 1.3} : {x: 1.45, y: 1.45, z: 1}, center: {x: 0, y: 0, z: -.1}}, uirevision: found.set.scene}}), CONFIG_3D);
  };

  // ---- training -----------------------------------------------------------------------------------------------
  const LOGS = { // title of the value axis, tags of one run, tags where runs are compared
    loss: ["loss", (tag) => tag.startsWith("loss/"), ["loss/total"]],
    rate: ["learning rate", (tag) => tag === "learning_rate", ["learning_rate"]],
    position: ["median position error (m)", (tag) => tag.startsWith("median_position_m/"), ["median_position_m/train", "median_position_m/held_out"]],
    orientation: ["median orientation error (°)", (tag) => tag.startsWith("median_orientation_deg/"), ["median_orientation_deg/train", "median_orientation_deg/held_out"]],
    gap: ["query-key gap", (tag, all) => /^query_key_gap\/(position|orientation)$/.test(tag) || (tag.includes("query_key_gap/") && tag.includes("_layer_") && !("query_key_gap/position" in all)), ["query_key_gap/mean"]],
    entropy: ["attention entropy (nats)", (tag) => tag.startsWith("attention_entropy/") && tag !== "attention_entropy/mean", ["attention_entropy/mean"]],
  };
  const logged = (kind) => (element, group, data) => {
    const [title, ofOne, compared] = LOGS[kind];
    const together = data.runs.length > 1 && chosen(group, "log") === 0;
    const run = data.runs.length > 1 ? chosen(group, "log") - 1 : 0;
    const items = together
      ? data.runs.flatMap((of, i) => shown(group, of.variant) ? compared.filter((tag) => tag in data.training[i])
        .map((tag) => ({tag, values: data.training[i][tag], label: of.label, look: {color: of.color, width: tag.endsWith("held_out") ? 3 : 1.5, dash: of.dash},
          held: tag.endsWith("held_out")})) : [])
      : Object.keys(data.training[run]).filter((tag) => ofOne(tag, data.training[run])).map((tag, i) => ({tag, values: data.training[run][tag], label: "",
        look: {...data.palette[i % data.palette.length], width: 1.8}}));
    // many layers: a colour per branch, since nobody can tell a dozen apart
    const layers = together ? [] : items.filter((item) => item.tag.includes("_layer_"));
    if (layers.length > 4) {
      layers.forEach((item) => {
        item.branch = item.tag.replace(/^.*\//, "").replace(/_layer_.*/, "");
        item.look = {...data.palette[item.branch === "position" ? 0 : 1], width: 1.5};
        item.first = layers.find((other) => other.branch === item.branch) === item;
      });
    }
    if (!items.length) return say(element, `no ${title.replace(/ \(.*/, "")} was logged`);
    // the first steps of a loss can be so large that nothing else is seen
    const all = kind === "loss" ? items.flatMap((item) => item.values[1]).sort((a, b) => a - b) : [];
    const top = all[Math.floor(.97 * all.length)], low = all[0], pad = .08 * (top - low);
    const cut = all.length > 50 && all[all.length - 1] > top + pad;
    Plotly.react(element, items.map((item) => {
      const words = item.tag.replace(/^[^/]*\//, "").replace(/_/g, " ");
      return {x: item.values[0], y: item.values[1], name: plain(item.branch ? `${item.branch} layers` : words), line: item.look,
        legendgroup: item.branch || words, showlegend: !item.branch || item.first,
        mode: item.values[0].length < 15 ? "lines+markers" : "lines", marker: {size: 5, symbol: item.held ? "diamond-open" : "circle"},
        hovertemplate: `${item.label ? plain(item.label) + "<br>" : ""}${plain(words)}<br>%{y:.4~g} at step %{x}<extra></extra>`};
    }), layout(axis("step", {rangemode: "tozero"}), axis(title + (cut ? ", first steps cut off" : ""), cut ? {range: [low - pad, top + pad]} : kind === "rate" ? {rangemode: "tozero"} : {}),
      {showlegend: !together && items.length > 1, margin: {l: 54, r: 14, t: 30, b: 46}}), CONFIG);
  };

  // ---- when to draw what --------------------------------------------------------------------------------------
  const DRAW = {map: recallMap, plane, space};
  ["position", "orientation"].forEach((kind, which) => {
    DRAW[`recall-${kind}`] = recall(kind, which);
    DRAW[`histogram-${kind}`] = histogram(kind, which);
  });
  Object.keys(LOGS).forEach((kind) => { DRAW[`log-${kind}`] = logged(kind); });

  const say = (element, words) => {
    if (window.Plotly) Plotly.purge(element);
    element.textContent = words;
    element.classList.add("small");
  };
  const draw = (element) => {
    const group = Number(element.dataset.group);
    if (!element.classList.contains("js-plotly-plot")) {
      element.textContent = "";
      element.classList.remove("small");
    }
    element.dataset.drawn = "yes";
    DRAW[element.dataset.plot](element, group, groups[group]);
  };
  const release = (element) => {
    Plotly.purge(element);
    delete element.dataset.drawn;
  };
  const plots = [...document.querySelectorAll(".plot")];
  // browsers keep some eight WebGL contexts: of many plots in space, those in sight have one
  const spaces = plots.filter((element) => element.dataset.plot === "space");
  const changing = spaces.length > 4 ? spaces : [];
  const watch = new IntersectionObserver((entries) => entries.forEach(({target, isIntersecting}) => {
    if (isIntersecting && !target.dataset.drawn) draw(target);
    else if (!isIntersecting && target.dataset.drawn) release(target);
  }), {rootMargin: "500px 0px"});
  changing.forEach((element) => watch.observe(element));
  // one after the other, so that the page answers meanwhile
  const waiting = plots.filter((element) => !changing.includes(element));
  const next = () => {
    const element = waiting.shift();
    if (!element) return;
    if (!element.dataset.drawn) draw(element);
    setTimeout(next);
  };
  next();
  // on paper: everything is open, and as wide as the paper
  let opened = [];
  const drawn = () => plots.filter((element) => element.classList.contains("js-plotly-plot"));
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((element) => { element.open = true; });
    document.body.classList.add("paper");
    plots.filter((element) => !element.dataset.drawn).forEach(draw);
    drawn().forEach((element) => Plotly.relayout(element, {width: element.clientWidth, height: element.clientHeight}));
  });
  window.addEventListener("afterprint", () => {
    opened.forEach((element) => { element.open = false; });
    document.body.classList.remove("paper");
    drawn().forEach((element) => Plotly.relayout(element, {autosize: true}));
  });

  const redraw = (group, kinds) => plots.filter((element) => element.dataset.drawn && element.dataset.group === group
    && kinds.test(element.dataset.plot)).forEach(draw);
  const FOLLOWS = {place: /^(recall|histogram|map)/, "map-run": /^map/, scene: /^(plane|space)/, run: /^(plane|space)/,
    error: /^(plane|space)/, log: /^log/};
  document.querySelectorAll("select").forEach((select) => select.addEventListener("change", () =>
    redraw(select.dataset.group, FOLLOWS[select.dataset.choice])));
  document.querySelectorAll("input[data-variant]").forEach((box) => box.addEventListener("change", () => {
    document.querySelectorAll(`input[data-variant="${box.dataset.variant}"][data-group="${box.dataset.group}"]`)
      .forEach((other) => { other.checked = box.checked; });
    redraw(box.dataset.group, /^(recall|histogram|log)/);
  }));
})();
