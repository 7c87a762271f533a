"use strict";
// Draws the figures of the page's data; a served page also asks for what is new. Nothing here is made from a run's texts.
(() => {
  let shown = [];

  async function draw() {
    const data = JSON.parse(document.getElementById("data").textContent);
    for (const views of shown) views.clear();
    const roots = {};
    data.figures.forEach((id, place) => { roots[id] = `figure-${place}`; });
    const item = { docid: "page", roots: roots, root_ids: data.figures };
    shown = data.figures.length ? await Bokeh.embed.embed_items({ page: data.document }, [item]) : [];
    document.body.dataset.drawn = String(data.figures.length);
  }

  function sections() {
    return [...document.querySelectorAll("details.section")];
  }

  // The new page in the old one's place: what is folded and where one reads stay as they are.
  async function take(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    const open = new Map(sections().map((section) => [section.dataset.title, section.open]));
    const place = window.scrollY;
    document.getElementById("page").replaceWith(document.adoptNode(fresh.getElementById("page")));
    for (const section of sections()) section.open = open.get(section.dataset.title) ?? section.open;
    document.title = fresh.title;
    document.body.dataset.version = fresh.body.dataset.version;
    await draw();
    window.scrollTo(0, place);
  }

  async function follow() {
    const state = document.getElementById("state");
    try {
      if (document.getElementById("follow").checked && !document.hidden) {
        const answer = await (await fetch("version", { cache: "no-store" })).json();
        if (answer.version !== document.body.dataset.version) {
          await take(await (await fetch("./", { cache: "no-store" })).text());
        }
        state.textContent = `up to date at ${new Date().toLocaleTimeString()}`;
      }
    } catch (error) {
      state.textContent = "the server does not answer; the page shows what it said last";
    }
    setTimeout(follow, 2000);
  }

  draw().then(() => { if (document.body.dataset.version) setTimeout(follow, 2000); });
})();
