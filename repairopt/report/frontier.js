// Shows one repair at a time, chosen by the slider, a point of the picture or a line of the table, and searches rows.
(() => {
  "use strict";
  const MOST_FOUND = 200; // rows that a search adds to those on the page
  const repairs = [...document.querySelectorAll("article.repair")];
  const links = [...document.querySelectorAll("a[data-repair]")];
  const slider = document.getElementById("slider");
  const said = document.getElementById("said");

  function choose(chosen) {
    const own = repairs[chosen];
    repairs.forEach((repair) => { repair.hidden = repair !== own; });
    for (const link of links) {
      if (link.dataset.repair === own.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    slider.value = chosen + 1;
    slider.setAttribute("aria-valuetext", own.dataset.said);
    said.textContent = own.dataset.said;
  }

  function byAddress() {
    return repairs.findIndex((repair) => "#" + repair.id === location.hash);
  }

  slider.addEventListener("input", () => choose(slider.value - 1));
  window.addEventListener("hashchange", () => { if (byAddress() >= 0) choose(byAddress()); });
  for (const link of links) {
    link.addEventListener("click", (event) => {
      event.preventDefault(); // the page stays where it is, so that picture and slider stay in sight
      choose(repairs.findIndex((repair) => repair.id === link.dataset.repair));
    });
  }

  for (const search of document.querySelectorAll(".search")) {
    const rows = [...search.nextElementSibling.querySelectorAll("tbody tr")];
    const [words, changed, count] = [...search.querySelectorAll("input[type=search], input[type=checkbox], output")];
    const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
    const data = search.querySelector("script");
    const further = data ? JSON.parse(data.textContent) : []; // rows that are not on the page, all of changed answers
    const found = [];

    function add(cells) {
      const row = rows[0].cloneNode(true);
      row.hidden = false;
      row.setAttribute("data-changed", "");
      cells.forEach((text, i) => { row.cells[i].textContent = text; });
      rows[0].parentNode.append(row);
      found.push(row);
    }

    const filter = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = (text) => wanted.every((word) => text.includes(word));
      rows.forEach((row, i) => { row.hidden = !fits(texts[i]) || (changed.checked && !row.hasAttribute("data-changed")); });
      found.splice(0).forEach((row) => row.remove());
      const more = further.filter((cells) => fits(cells.join(" ").toLowerCase()));
      const listed = rows.filter((row) => !row.hidden).length;
      if (wanted.length) more.slice(0, MOST_FOUND).forEach(add);
      const shown = listed + found.length < listed + more.length ? ", " + (listed + found.length) + " listed" : "";
      count.textContent = listed + more.length + " of " + (rows.length + further.length) + " rows" + shown;
    };
    words.addEventListener("input", filter);
    changed.addEventListener("input", filter);
    filter();
  }

  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("article:not([hidden]) details")) details.open = true;
  });
  document.documentElement.classList.add("scripted");
  choose(byAddress() >= 0 ? byAddress() : slider.value - 1);
})();
