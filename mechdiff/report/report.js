// What makes the report touchable. The page is whole without it: this only adds to what is already there.
"use strict";
(() => {
  document.documentElement.classList.add("scripted");
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip"), card = document.getElementById("card");
  const types = { res: "residual branch", head: "attention head", skip: "skip tensor", time: "time injection" };
  const names = new Map();  // component -> its type, over all models
  for (const model of data.models) for (const c of model.components) names.set(c.name, c);
  const order = [...names.keys()];

  const text = (value, digits = 3) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const shown = size >= 1000 ? Math.round(size).toLocaleString("en") : size === 0 ? "0" : size < 0.0005 ? "0.000"
      : size >= 100 ? size.toFixed(0) : size >= 10 ? size.toFixed(1) : size.toFixed(size >= 1 ? 2 : digits);
    return (value < 0 && Number(shown.replace(/,/g, "")) ? "−" : "") + shown;
  };
  const plain = { cell: "ΔL/L", pooled: "pooled ΔL/L", unit: "%" };  // what the numbers of most models are
  const measure = (model) => model.measure ?? plain;
  const between = ([estimate, low, high]) => `${text(estimate)} [${text(low)}, ${text(high)}]`;
  const pooled = (model, ablation, i) => `${between(ablation.pooled[i])} ${measure(model).unit}`
    + (ablation.pooled[i].length > 3 ? `, ${chance(ablation.pooled[i][3])} (Holm)` : "");
  const chance = (p) => (p < 0.001 ? "p < 0.001" : `p = ${text(p)}`);
  const safe = (words) => String(words).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const modelOf = (element) => data.models[Number(element.closest("[data-model]")?.dataset.model ?? 0)];
  const indexIn = (model, name) => model.components.findIndex((c) => c.name === name);

  // ---- hovering: value, interval, p, n ------------------------------------------------------------------
  function aboutCell(group, x, y) {  // cells are known by their place: those of one color are one path
    const model = modelOf(group), rows = group.dataset.rows.split(",").map(Number), what = group.dataset.cells;
    const box = group.getBoundingClientRect(), columns = model.t.length;
    const among = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    const row = rows[among((y - box.top) / box.height, rows.length)], j = among((x - box.left) / box.width, columns);
    const where = `t = ${model.t[j]}, log-SNR ${text(model.log_snr[j])}`;
    if (what in model.ablations) {
      const ablation = model.ablations[what], cell = ablation.cells[row][j], name = model.components[row].name;
      const value = ablation.idle[row] ? "no prediction changed"
        : `${measure(model).cell} ${between(cell)} ${measure(model).unit}, ${chance(cell[3])} (max-T)`;
      return { name, words: [`${what} ablation, ${where}`, value, `n = ${ablation.n} images`] };
    }
    const name = model.attention.heads[row];
    const value = `${model.attention.titles[what]}: ${between(model.attention.statistics[what][row][j])}`;
    return { name, words: [where, value, `n = ${model.attention.n} images, Nk = ${model.attention.keys[row]}`] };
  }
  function aboutMark(mark) {
    const model = modelOf(mark), name = mark.dataset.c, i = indexIn(model, name), words = [];
    if (mark.dataset.told) return { name, words: [mark.dataset.told] };
    if (i < 0) return null;
    const wanted = mark.dataset.a ? [mark.dataset.a] : Object.keys(model.ablations);
    for (const key of wanted.filter((a) => a in model.ablations)) {
      const ablation = model.ablations[key];
      words.push(ablation.idle[i] ? `${key} ablation: no prediction changed`
        : `${key} ablation: ${measure(model).pooled} ${pooled(model, ablation, i)}, n = ${ablation.n} images`);
      if (!model.measure) continue;
      for (const other of data.models.filter((m) => m !== model))
        words.push(`${other.name}: pooled ΔL/L ${between(other.ablations[key].pooled[i])} %`);
    }
    return { name, words };
  }
  function about(target, x, y) {
    const group = target.closest?.("[data-cells]"), mark = target.closest?.("[data-c]");
    return group ? (target === group ? null : aboutCell(group, x, y)) : mark ? aboutMark(mark) : null;
  }
  function showTip(target, x, y) {
    const facts = about(target, x, y);
    tip.hidden = !facts;
    if (!facts) return;
    tip.innerHTML = `<b>${safe(facts.name)}</b>` + facts.words.map((line) => `<br>${safe(line)}`).join("");
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 12) : y + 18}px`;
  }
  document.addEventListener("pointermove", (event) => showTip(event.target, event.clientX, event.clientY));
  document.addEventListener("focusin", (event) => {
    const box = event.target.getBoundingClientRect();
    if (event.target.matches("[data-c]")) showTip(event.target, box.right, box.top);
    else tip.hidden = true;
  });

  // ---- a component's card --------------------------------------------------------------------------------
  const colors = ["var(--link)", "var(--blue)", "var(--green)", "var(--muted)"];
  const bend = (v) => Math.sign(v) * Math.log10(1 + Math.abs(v));  // symmetric logarithm, linear near 0
  const room = () => Math.min(420, innerWidth - 80);  // so that labels keep their size on a phone
  function axis(values) {
    const low = Math.min(0, ...values.map(bend)), high = Math.max(bend(1), ...values.map(bend));
    const ticks = [-1000, -100, -10, -1, 0, 1, 10, 100, 1000, 1e4, 1e5].filter((v) => bend(v) >= low && bend(v) <= high);
    return { low, high, ticks };
  }
  function curves(model, i, ends) {
    const [w, h, left, right, top, bottom] = [room(), 210, 50, 12, 12, 44], n = model.t.length;
    const x = (j) => left + 10 + (n > 1 ? j / (n - 1) : 0.5) * (w - left - right - 20);  // marks clear of the scale
    const y = (v) => top + (ends.high - bend(v)) / (ends.high - ends.low) * (h - top - bottom);
    let drawn = ends.ticks.map((v) => `<line x1="${left}" x2="${w - right}" y1="${y(v)}" y2="${y(v)}" class="${v ? "grid" : "zero"}"/>`
      + `<text x="${left - 6}" y="${y(v) + 4}" text-anchor="end">${text(v).replace(/\.0+$/, "")}</text>`).join("");
    const step = Math.ceil(n / 6);
    for (let j = 0; j < n; j += step)
      drawn += `<text x="${x(j)}" y="${h - 28}" text-anchor="middle">${text(model.log_snr[j], 1)}</text>`
        + `<text x="${x(j)}" y="${h - 15}" text-anchor="middle" class="faint">${model.t[j]}</text>`;
    drawn += `<text x="${(left + w - right) / 2}" y="${h - 1}" text-anchor="middle">log-SNR and timestep t</text>`;
    Object.values(model.ablations).forEach((ablation, k) => {
      if (ablation.idle[i]) return;
      const cells = ablation.cells[i], shift = (k - (Object.keys(model.ablations).length - 1) / 2) * 3;
      drawn += `<g style="stroke:${colors[k % 4]};fill:${colors[k % 4]}"><polyline fill="none" stroke-width="1.5" points="`
        + cells.map((c, j) => `${x(j) + shift},${y(c[0])}`).join(" ") + `"/>`
        + cells.map((c, j) => `<line x1="${x(j) + shift}" x2="${x(j) + shift}" y1="${y(c[1])}" y2="${y(c[2])}"/>`
          + `<circle cx="${x(j) + shift}" cy="${y(c[0])}" r="3" ${c[3] < 0.05 ? "" : 'style="fill:var(--paper)"'}/>`).join("") + "</g>";
    });
    return `<svg viewBox="0 0 ${w} ${h}" role="img" aria-label="${model.measure ? "Change of relative" : "Relative"} loss increase by timestep, ${safe(model.name)}">${drawn}</svg>`;
  }
  function spread(model, i) {
    const w = room(), rows = Object.entries(model.ablations).filter(([, a]) => a.images[i].length && !a.idle[i]);
    if (!rows.length) return "";
    const ends = axis(rows.flatMap(([, a]) => a.images[i])), x = (v) => 66 + (bend(v) - ends.low) / (ends.high - ends.low) * (w - 78);
    const h = 24 * rows.length + 22;
    let drawn = ends.ticks.map((v) => `<line x1="${x(v)}" x2="${x(v)}" y1="2" y2="${h - 20}" class="${v ? "grid" : "zero"}"/>`
      + `<text x="${x(v)}" y="${h - 6}" text-anchor="middle">${text(v).replace(/\.0+$/, "")}</text>`).join("");
    rows.forEach(([name, ablation], k) => {
      const color = colors[Object.keys(model.ablations).indexOf(name) % 4];
      drawn += `<text x="54" y="${24 * k + 17}" text-anchor="end">${safe(name)}</text>`
        + ablation.images[i].map((v, m) => `<circle cx="${x(v)}" cy="${24 * k + 13 + 7 * (((m * 0.618) % 1) * 2 - 1)}" r="2.2" style="fill:${color};opacity:.6"/>`).join("");
    });
    const shown = rows[0][1].images[i].length, all = rows[0][1].scored;
    const thinned = shown < all ? `; ${shown} of ${all.toLocaleString("en")} images, evenly by rank` : "";
    return `<p class="sample">Spread over images: each mark is one image’s contribution to ${measure(model).pooled}, ${measure(model).unit}${thinned}.</p>
      <svg viewBox="0 0 ${w} ${h}" role="img" aria-label="Spread over images of ${safe(model.name)}">${drawn}</svg>`;
  }
  function attention(model, name) {
    const i = model.attention.heads.indexOf(name);
    if (i < 0) return "";
    const row = (key) => model.attention.statistics[key][i].map((c) => `<td>${text(c[0])}</td>`).join("");
    return `<div class="scroll" tabindex="0" role="group" aria-label="Attention statistics"><table class="grid"><caption><span>Attention, means over n = ${model.attention.n} images; Nk = ${model.attention.keys[i]}.</span></caption>
      <thead><tr><th scope="col">t</th>${model.t.map((t) => `<th scope="col">${t}</th>`).join("")}</tr></thead><tbody>`
      + Object.keys(model.attention.statistics).map((key) => `<tr><th scope="row">${model.attention.titles[key]}</th>${row(key)}</tr>`).join("") + "</tbody></table></div>";
  }
  function shown(model, name) {  // images that came with the results
    const images = model.examples?.[name] ?? [];
    return images.map((p) => `<figure><img src="${p.image}" alt="${safe(p.alt)}"><figcaption>${safe(p.caption)}</figcaption></figure>`).join("");
  }
  function openCard(name) {
    if (!names.has(name)) return;
    const component = names.get(name), models = data.models.filter((m) => indexIn(m, name) >= 0);
    const all = models.flatMap((m) => Object.values(m.ablations).filter((a) => !a.idle[indexIn(m, name)])
      .flatMap((a) => a.cells[indexIn(m, name)].flatMap((c) => c.slice(0, 3)))).filter((v) => v !== null);
    const ends = axis(all);
    const columns = models.map((model) => {
      const i = indexIn(model, name);
      const lines = Object.entries(model.ablations).map(([key, a], k) => `<li><span class="dot" style="background:${colors[k % 4]}"></span>${safe(key)} ablation: `
        + (a.idle[i] ? "no prediction changed" : pooled(model, a, i) + (model.measure ? "" : `, rank ${1 + a.pooled.filter((v) => v[0] > a.pooled[i][0]).length} of ${a.pooled.length}`) + `, n = ${a.n}${a.people ? ` images at a timestep, of ${a.people} people` : ""}`) + "</li>").join("");
      return `<section><h3>${safe(model.name)}</h3><p class="sample">Inputs: ${safe(model.inputs)}.</p><ul class="key">${lines}</ul>
        ${curves(model, i, ends)}${spread(model, i)}${shown(model, name)}${attention(model, name)}</section>`;
    });
    card.querySelector("h2").textContent = name;
    card.querySelector(".facts").textContent = `${types[component.type] ?? component.type}, resolution ${component.resolution} × ${component.resolution}. `
      + "Curves: ΔL/L in %, 95 % intervals over images, or people where they are known; filled marks are significant (max-T p < 0.05); the scale is shared by models.";
    card.querySelector(".columns").innerHTML = columns.join("");
    const place = order.indexOf(name);
    card.querySelector(".previous").dataset.go = order[(place + order.length - 1) % order.length];
    card.querySelector(".next").dataset.go = order[(place + 1) % order.length];
    tip.hidden = true;
    if (!card.open) card.showModal();
    card.scrollTop = 0;
  }
  const go = (name) => { location.hash = `c=${encodeURIComponent(name)}`; };
  function decoded(words) {
    try { return decodeURIComponent(words); } catch { return words; }  // a broken link, such as #c=%
  }
  function follow() {
    const match = location.hash.match(/^#c=(.+)$/);
    if (match) openCard(decoded(match[1]));
    else if (card.open) card.close();
  }
  card.addEventListener("close", () => {
    if (location.hash.startsWith("#c=")) history.replaceState(null, "", location.pathname + location.search);
  });
  card.addEventListener("click", (event) => {
    if (event.target === card) card.close();
    else if (event.target.closest("[data-go]")) go(event.target.closest("[data-go]").dataset.go);
    else if (event.target.closest(".close")) card.close();
  });
  addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => {
    if (card.contains(event.target)) return;
    const facts = about(event.target, event.clientX, event.clientY);
    if (facts) go(facts.name);
  });
  for (const mark of document.querySelectorAll("svg [data-c]")) {
    mark.setAttribute("role", "button");
    mark.setAttribute("aria-label", `${mark.dataset.c}, open its card`);
    if (mark.dataset.a && mark.closest("#network")) mark.tabIndex = 0;
  }
  document.addEventListener("keydown", (event) => {
    if ((event.key === "Enter" || event.key === " ") && event.target.matches?.("svg [data-c]")) {
      event.preventDefault();
      go(event.target.dataset.c);
    }
  });
  for (const word of document.querySelectorAll("main code, .grid th[scope=row]")) {
    if (!names.has(word.textContent)) continue;
    const link = Object.assign(document.createElement("a"), { href: `#c=${encodeURIComponent(word.textContent)}`, textContent: word.textContent });
    link.className = "component";
    word.replaceChildren(link);
  }

  // ---- tables: sort, filter, download -------------------------------------------------------------------
  const plainCell = (cell) => {
    const copy = cell.cloneNode(true), small = [...copy.querySelectorAll("small")];
    const extra = small.map((s) => s.textContent.trim()).join(" ");
    small.forEach((s) => s.remove());
    copy.querySelectorAll("br").forEach((line) => line.replaceWith("; "));
    return [copy.textContent.trim().replace(/[⇅↑↓]$/, "").trim(), extra];
  };
  const plainMinus = (words) => words.replace(/−/g, "-");
  const parsed = (words) => {
    const value = Number(plainMinus(words).replace(/,/g, ""));
    return words === "" || Number.isNaN(value) ? null : value;
  };
  function stated(cell) {  // the numbers behind a cell: an estimate, the ends of its interval, p; or as its heading names
    if (cell.dataset.v !== undefined) return cell.dataset.v.split(" ").map(Number).map((v) => (Number.isFinite(v) ? v : null));
    const table = cell.closest("table"), j = table.tHead.rows[0].cells[cell.cellIndex]?.dataset.t;
    if (j === undefined || cell.colSpan > 1) return null;
    const model = modelOf(table), what = table.dataset.of, name = plainCell(cell.parentElement.cells[0])[0];
    return what in model.ablations ? model.ablations[what].cells[indexIn(model, name)][j]
      : model.attention.statistics[what][model.attention.heads.indexOf(name)][j];
  }
  const number = (cell) => stated(cell)?.[0] ?? parsed(plainCell(cell)[0].replace(/^< /, ""));  // to sort by
  const save = (name, kind, content) => {
    const link = Object.assign(document.createElement("a"), { download: name, href: URL.createObjectURL(new Blob([content], { type: kind })) });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const button = (words, act) => {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: words });
    made.addEventListener("click", act);
    return made;
  };
  const slug = (words) => words.toLowerCase().replace(/[^\w.]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
  const records = (table) => {  // of the rows that are shown
    const heads = [...table.tHead.rows[0].cells].map((cell, k) => cell.dataset.name || plainCell(cell)[0] || `column ${k + 1}`);
    return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => {
      const record = {};
      [...row.cells].forEach((cell, k) => {
        if (cell.colSpan > 1) { record.note = "no prediction changed"; return; }
        const names = heads[k].split("|"), [words, extra] = plainCell(cell), ends = extra.split(" … ").map(parsed);
        if (names.length < 2) {
          const key = names[0] in record ? `${names[0]} (${k + 1})` : names[0];
          names.splice(0, 1, key, `${key}, low`, `${key}, high`, `${key}, p (max-T)`);
        }
        const values = stated(cell);
        if (values) values.forEach((value, e) => { record[names[e]] = Number.isFinite(value) ? value : null; });
        else record[names[0]] = /^[–—]?$/.test(words) ? null : parsed(words) ?? plainMinus(words);
        if (values) return;
        if (ends.length === 2) ends.forEach((end, e) => { record[names[e + 1]] = end; });
        else if (extra) record[`${names[0]}, note`] = plainMinus(extra);
      });
      return record;
    });
  };
  function csv(table) {
    const rows = records(table), heads = [...new Set(rows.flatMap(Object.keys))];
    const quote = (v) => (/[",\n]/.test(v ?? "") ? `"${String(v).replace(/"/g, '""')}"` : v ?? "");
    return [heads, ...rows.map((row) => heads.map((h) => row[h]))].map((row) => row.map(quote).join(",")).join("\n") + "\n";
  }
  function sort(table, k, head) {
    const direction = head.getAttribute("aria-sort") === "descending" ? 1 : -1, body = table.tBodies[0];
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const keyed = [...body.rows].map((row) => ({ row, value: row.cells[k] && number(row.cells[k]), words: row.cells[k] ? plainCell(row.cells[k])[0] : "" }));
    keyed.sort((a, b) => {
      if (a.value !== null && b.value !== null && a.value !== undefined && b.value !== undefined) return direction * (a.value - b.value);
      if ((a.value ?? null) !== null || (b.value ?? null) !== null) return (a.value ?? null) === null ? 1 : -1;
      return direction * -a.words.localeCompare(b.words, "en", { numeric: true });
    });
    body.append(...keyed.map((entry) => entry.row));
  }
  for (const table of document.querySelectorAll("table.plain, table.grid, table.verdicts")) {
    if (!table.tHead) continue;
    [...table.tHead.rows[0].cells].forEach((head, k) => {
      const act = button("", () => sort(table, k, head));
      act.className = "sort";
      act.append(...head.childNodes);
      head.append(act);
    });
    const holder = table.closest(".scroll") ?? table, tools = document.createElement("div");
    tools.className = "tools";
    const name = [...(table.closest("[data-model]") ? [modelOf(table).name] : []), holder.getAttribute("aria-label") ?? "table"].map(slug).join("-");
    const saves = [
      ["CSV", button("CSV", () => save(`${name}.csv`, "text/csv", csv(table)))],
      ["JSON", button("JSON", () => save(`${name}.json`, "application/json", JSON.stringify(records(table), null, 1)))],
    ];
    if (table.tBodies[0].rows.length > 7) {
      const search = Object.assign(document.createElement("input"), { type: "search", placeholder: "filter rows" });
      search.setAttribute("aria-label", `Filter rows: ${holder.getAttribute("aria-label") ?? "table"}`);
      search.addEventListener("input", () => {
        const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
        const rows = [...table.tBodies[0].rows];
        for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
        const shown = rows.filter((row) => !row.hidden).length;
        for (const [kind, act] of saves) act.textContent = shown < rows.length ? `${kind} of ${shown} ${shown === 1 ? "row" : "rows"}` : kind;
      });
      tools.append(search);
    }
    tools.append(...saves.map(([, act]) => act));
    holder.before(tools);
  }
  for (const drawing of document.querySelectorAll(".drawing")) {
    const act = button("SVG", () => {
      const svg = drawing.querySelector("svg").cloneNode(true);
      svg.style.fontFamily = "sans-serif";
      for (const mark of svg.querySelectorAll("[tabindex]")) mark.removeAttribute("tabindex");
      const words = new XMLSerializer().serializeToString(svg).replace(/light-dark\(\s*([^,]+),[^)]*\)/g, "$1");
      save(`${svg.dataset.figure}.svg`, "image/svg+xml", words);
    });
    act.setAttribute("aria-label", "Save this figure as SVG");
    drawing.closest("figure").querySelector("figcaption").append(" ", act);
  }
  follow();
})();
