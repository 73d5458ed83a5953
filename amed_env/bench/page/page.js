"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)").matches;
  const drawn = new Set();

  function colour(text) {
    const [name, opacity] = text.slice(1).split("|");
    const value = themes[dark.matches ? "dark" : "light"][name];
    if (opacity === undefined) return value;
    const channel = (from) => parseInt(value.slice(from, from + 2), 16);
    return `rgba(${channel(1)},${channel(3)},${channel(5)},${opacity})`;
  }

  function resolved(part) {
    if (typeof part === "string") return part.startsWith("@") ? colour(part) : part;
    if (Array.isArray(part)) return part.every((item) => typeof item === "number") ? part : part.map(resolved);
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, resolved(value)]));
  }

  function layoutOf(figure, width) {
    const narrow = width < 460;
    const entries = figure.data.filter((trace) => trace.name && trace.showlegend !== false);
    const legend = figure.layout.showlegend === false ? 0 : entries.length;
    const letters = entries.reduce((sum, trace) => sum + 42 + 7.2 * trace.name.length, 0);
    const rows = legend ? Math.ceil((letters * 1.25) / width) : 0;
    const below = 29 * rows; // a row of the legend with the gap that plotly leaves between groups
    const axis = { gridcolor: "@grid", linecolor: "@muted", zerolinecolor: "@grid", tickcolor: "@muted", fixedrange: coarse };
    const own = figure.layout;
    const across = { ...axis, ...own.xaxis };
    if (narrow && across.ticktext && across.type !== "log") {
      // Every second label, the last one and the zero among them, or they run into each other.
      const kept = (_, number, all) => number === 0 || (all.length - 1 - number) % 2 === 0;
      across.tickvals = across.tickvals.filter(kept);
      across.ticktext = across.ticktext.filter(kept);
    }
    return resolved({
      paper_bgcolor: "@paper",
      plot_bgcolor: "@paper",
      font: { color: "@ink", size: narrow ? 11 : 12, family: "system-ui, sans-serif" },
      hoverlabel: { bgcolor: "@panel", bordercolor: "@muted", font: { color: "@ink" } },
      hovermode: "closest",
      dragmode: coarse ? false : "zoom",
      legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" },
      ...own,
      height: own.height || (narrow ? 330 : 380) + below,
      margin: { l: narrow ? 48 : 58, r: 14, t: 12, b: 52 + below },
      xaxis: { tickangle: 0, ...across },
      yaxis: { ...axis, ...own.yaxis },
    });
  }

  function draw(place) {
    const figure = figures[place.dataset.figure];
    const options = { responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover" };
    Plotly.react(place, resolved(figure.data), layoutOf(figure, place.clientWidth || 360), options);
    drawn.add(place);
  }

  const places = [...document.querySelectorAll(".plot")];
  const watcher = new IntersectionObserver((seen) => {
    for (const entry of seen) {
      if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
    }
  }, { rootMargin: "600px" });
  places.forEach((place) => watcher.observe(place));
  dark.addEventListener("change", () => drawn.forEach(draw));
  addEventListener("beforeprint", () => places.forEach(draw));
  let before = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === before) return;
    before = innerWidth;
    drawn.forEach(draw);
  });
})();
