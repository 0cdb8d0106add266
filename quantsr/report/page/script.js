"use strict";
const pictures = JSON.parse(document.getElementById("pictures").textContent);
for (const image of document.querySelectorAll("img[data-picture]")) image.src = pictures[image.dataset.picture];

for (const block of document.querySelectorAll(".pictures")) {
  const buttons = [...block.querySelectorAll("[data-show]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      for (const article of block.querySelectorAll("article")) {
        article.hidden = article.dataset.bits !== button.dataset.show;
      }
    });
  }
}

for (const block of document.querySelectorAll(".compare")) {
  const samples = JSON.parse(block.querySelector("script").textContent);
  const choose = Object.fromEntries(["sample", "left", "right"].map((key) => [key, block.querySelector(`[data-choose=${key}]`)]));
  const stage = block.querySelector(".stage");
  const range = stage.querySelector("input");
  const widest = 640;
  let sample;

  // A whole factor, so that every pixel is a square of the same size, unless that wastes the room of a phone.
  const resize = () => {
    const room = Math.min(widest, block.clientWidth - 2 * parseFloat(getComputedStyle(block).paddingLeft));
    const whole = Math.floor(room / sample.width) * sample.width;
    stage.style.width = `${whole >= 0.8 * room ? whole : room}px`;
    stage.style.aspectRatio = `${sample.width} / ${sample.height}`;
    block.querySelector(".under").style.maxWidth = stage.style.width;
  };

  const draw = () => {
    for (const side of ["left", "right"]) {
      const version = sample.versions[choose[side].value];
      const image = stage.querySelector(`[data-side=${side}]`);
      image.src = pictures[version.picture];
      image.alt = `${side}: ${version.label}`;
      const bits = version.group === "references" ? "" : version.group;
      block.querySelector(`[data-caption=${side}]`).textContent = [version.label, bits, version.note].filter(Boolean).join(" · ");
    }
  };

  const options = (select) => {
    const groups = new Map();
    sample.versions.forEach((version, index) => {
      if (!groups.has(version.group)) {
        const group = document.createElement("optgroup");
        group.label = version.group;
        groups.set(version.group, group);
      }
      groups.get(version.group).append(new Option(version.label, index));
    });
    select.replaceChildren(...groups.values());
  };

  const same = (a) => sample.versions.findIndex((b) => b.label === a.label && b.group === a.group);

  const start = () => {
    const before = sample && ["left", "right"].map((side) => sample.versions[choose[side].value]);
    sample = samples[choose.sample.value];
    const last = sample.versions.filter((version) => version.group === sample.versions.at(-1).group);
    const teacher = sample.versions.find((version) => version.label.startsWith("teacher"));
    const wanted = [last[0], last.length > 1 ? last.at(-1) : teacher ?? sample.versions[0]];
    ["left", "right"].forEach((side, index) => {
      options(choose[side]);
      const kept = before ? same(before[index]) : -1;
      choose[side].value = kept >= 0 ? kept : same(wanted[index]);
    });
    resize();
    draw();
  };

  samples.forEach((one, index) => choose.sample.append(new Option(one.name, index)));
  choose.sample.addEventListener("change", start);
  choose.left.addEventListener("change", draw);
  choose.right.addEventListener("change", draw);
  range.addEventListener("input", () => stage.style.setProperty("--at", `${range.value}%`));
  addEventListener("resize", resize);
  start();
}
