// Draws the latest pictures: asks which have changed, fetches those that are on the page, draws, asks again.
// Nothing is queued: what came while a picture was being drawn is passed over.

const tags = new WeakMap(); // img → tag of what it shows
let version = -1;
let pictures = {};
let view = sessionStorage.getItem("view") || "refined";
let chosen = null; // split point that the slider stands at

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const shown = (img) => img.dataset.picture.replace("{view}", view);

function text(element, words) {
  if (element && element.textContent !== words) element.textContent = words;
}

async function draw(img) {
  const name = shown(img);
  const figure = img.closest("figure");
  const said = pictures[name];
  figure.classList.toggle("empty", !said);
  if (!said) {
    text(figure.querySelector(".title"), figure.dataset.title);
    text(figure.querySelector(".detail"), "nothing yet");
    if (tags.has(img)) {
      tags.delete(img);
      URL.revokeObjectURL(img.src);
      img.removeAttribute("src");
    }
    return;
  }
  if (tags.get(img) === name + said.tag) return;
  const answer = await fetch(`/live/${encodeURIComponent(name)}.jpg`, { cache: "no-cache" });
  if (!answer.ok) return;
  const before = img.src;
  const url = URL.createObjectURL(await answer.blob());
  img.src = url;
  try {
    await img.decode();
  } catch {} // replaced meanwhile
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
  tags.set(img, name + said.tag);
  img.alt = said.title;
  text(figure.querySelector(".title"), said.title);
  text(figure.querySelector(".detail"), said.detail);
}

function slide() {
  const range = document.querySelector("#sweep-range");
  if (!range) return;
  const splits = Object.keys(pictures)
    .filter((name) => name.startsWith("sweep-at-"))
    .sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  range.disabled = splits.length < 2;
  range.max = Math.max(0, splits.length - 1);
  if (chosen === null || !splits.includes(chosen)) chosen = splits[Math.min(range.value, splits.length - 1)] || null;
  range.value = Math.max(0, splits.indexOf(chosen));
  const name = chosen ? chosen.slice("sweep-at-".length) : "";
  range.setAttribute("aria-valuetext", name || "none yet");
  text(document.querySelector("#sweep-name"), name || "–");
  document.querySelector("#sweep-img").dataset.picture = chosen || "sweep-at-none";
}

async function look() {
  slide();
  await Promise.all([...document.querySelectorAll("img[data-picture]")].map(draw));
}

function lost(yes) {
  const banner = document.querySelector("#lost");
  if (banner) banner.hidden = !yes;
}

async function loop() {
  for (;;) {
    if (document.hidden) {
      await sleep(250);
      continue;
    }
    try {
      const answer = await fetch(`/live/changed?after=${version}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      ({ version, pictures } = await answer.json());
      lost(false);
      await look();
    } catch {
      version = -1;
      lost(true);
      await sleep(1000);
    }
  }
}

document.addEventListener("change", (event) => {
  if (event.target.name === "view") {
    view = event.target.value;
    sessionStorage.setItem("view", view);
    look();
  }
});
document.addEventListener("input", (event) => {
  if (event.target.id === "sweep-range") {
    const splits = Object.keys(pictures)
      .filter((name) => name.startsWith("sweep-at-"))
      .sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    chosen = splits[event.target.value] || null;
    look();
  }
});

async function begin() {
  // the page's elements come after this script
  while (!document.querySelector("img[data-picture]")) await sleep(50);
  const radio = document.querySelector(`input[name=view][value=${view}]`);
  if (radio) radio.checked = true;
  loop();
}
begin();
