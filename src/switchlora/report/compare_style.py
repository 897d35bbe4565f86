"""The head and the script of the comparison's page, which hold no data."""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>TITLE</title>
<style>
body { margin: 0; background: #fafafa; color: #222; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 1.5rem; }
h1 { margin: 0 0 .5rem; font-size: 1.7rem; }
h2 { margin: 2.2rem 0 .5rem; font-size: 1.2rem; }
p { max-width: 78ch; }
.note { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; background: #fff; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e4e4; text-align: left; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; border-bottom: 2px solid #999; cursor: pointer; }
td.number { text-align: right; }
tbody tr:hover { background: #f0f5fb; }
.figure, figure { background: #fff; border: 1px solid #e4e4e4; border-radius: 4px; }
.searches { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem; }
figure { margin: 0; }
figcaption { padding: 0 1rem .7rem; color: #555; font-size: .9rem; }
pre, code { font-size: .82rem; }
pre { overflow-x: auto; padding: 1rem; background: #fff; border: 1px solid #e4e4e4; border-radius: 4px; }
details code { white-space: normal; }
</style>
</head>
"""

SCRIPT = """
const drawn = JSON.parse(document.getElementById("figures").textContent);
for (const [id, figure] of Object.entries(drawn)) {
  Plotly.newPlot(id, figure.data, figure.layout, { responsive: true, displaylogo: false });
  if (figure.views) switchBetween(document.getElementById(id), figure.views);
}
function switchBetween(plot, views) {
  const hidden = new Set();
  plot.on("plotly_buttonclicked", ({ button }) => {
    for (const trace of plot.data.filter((one) => one.visible !== false)) {
      if (trace.visible === "legendonly") hidden.add(trace.legendgroup);
      else hidden.delete(trace.legendgroup);
    }
    const { x, shown, title } = views[button.label];
    const visible = plot.data.map((one, i) => shown[i] && (hidden.has(one.legendgroup) ? "legendonly" : true));
    Plotly.update(plot, { x, visible }, { "xaxis.title.text": title });
  });
}
for (const head of document.querySelectorAll("th")) {
  head.title = "sort";
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], place = head.cellIndex;
    const key = (row) => {
      const cell = row.cells[place], value = cell.dataset.value;
      return value === undefined ? cell.textContent : value === "" ? Infinity : Number(value);
    };
    const up = head.dataset.sorted !== "up";
    head.dataset.sorted = up ? "up" : "down";
    [...body.rows].sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (up ? 1 : -1))
      .forEach((row) => body.appendChild(row));
  });
}
document.body.dataset.drawn = Object.keys(drawn).length;
"""
