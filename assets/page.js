// What the page does beyond what it says: looks again, draws charts, follows a stream, copies. All of it
// can be read and used without. What a model said is only ever set as text.
'use strict';

(() => {
  const refresh = Number(document.body.dataset.refresh || 0) * 1000;
  const live = document.getElementById('live');
  const said = document.getElementById('said');
  const plots = new Map();

  // Of a row of names that is wider than the screen, the one that is meant is seen.
  for (const here of document.querySelectorAll('.top nav [aria-current], .tabs [aria-current]')) {
    const row = here.closest('.tabs, nav');
    row.scrollLeft = here.offsetLeft - (row.clientWidth - here.offsetWidth) / 2;
  }

  // ---- charts

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (n) => n >= 1e6 ? +(n / 1e6).toFixed(1) + 'M' : n >= 1e3 ? +(n / 1e3).toFixed(1) + 'k' : String(+n.toFixed(2));

  const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', hour12: false });

  function draw(figure) {
    const box = figure.querySelector('.plot');
    const text = figure.dataset.series;
    if (!box || !window.uPlot || (plots.get(figure.id) || {}).text === text && box.classList.contains('drawn')) return;
    const [times, first, second] = JSON.parse(text);
    const slot = (times[1] - times[0]) / 2;
    const sum = first.map((n, at) => n + second[at]);
    const bars = uPlot.paths.bars({ size: [0.8, 40], align: 0 });
    const series = (label, fill, values) => ({ label, fill: colour(fill), width: 0, points: { show: false }, paths: bars, values });
    const axis = { stroke: colour('--quiet'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false }, font: '11px system-ui, sans-serif' };
    const label = box.querySelector('svg') ? box.querySelector('svg').getAttribute('aria-label') : '';
    (plots.get(figure.id) || { plot: { destroy() {} } }).plot.destroy();
    box.replaceChildren();
    box.classList.add('drawn');
    box.setAttribute('role', 'img');
    if (label) box.setAttribute('aria-label', label);
    const plot = new uPlot({
      width: box.clientWidth - 6,
      height: box.clientHeight - 12,
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: { x: { time: true, range: (_, low, high) => [low - slot, high + slot] }, y: { range: (_, low, high) => [0, (high || 1) * 1.05] } },
      axes: [{ ...axis, grid: { show: false }, size: 26, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 44, values: (_, ticks) => ticks.map(short) }],
      series: [{}, series('all', '--second'), series('first', '--first')],
    }, [times, sum, first], box);
    plots.set(figure.id, { plot, text, box });
  }

  const drawAll = () => document.querySelectorAll('.chart').forEach(draw);
  const redraw = () => {
    document.querySelectorAll('.plot.drawn').forEach((box) => box.classList.remove('drawn'));
    drawAll();
  };
  new ResizeObserver(() => plots.forEach(({ plot, box }) => plot.setSize({ width: box.clientWidth - 6, height: box.clientHeight - 10 })))
    .observe(document.documentElement);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
  drawAll();

  // ---- looking again

  let since = Date.now();
  let failed = false;

  // What somebody is about to use stays as it is.
  const busy = (part) => part.contains(document.activeElement) && document.activeElement !== part
    || part.querySelector('input:checked, details[open]')
    || !getSelection().isCollapsed && part.contains(getSelection().anchorNode);

  // What the page said of itself when it was last read: where that is still so, nothing is sent again.
  let mark = document.body.dataset.mark || null;

  async function look() {
    const headers = { accept: 'text/html' };
    if (mark) headers['if-none-match'] = mark;
    const answer = await fetch(location.href, { headers, redirect: 'error', cache: 'no-store' });
    if (answer.status === 304) return;
    if (!answer.ok) throw new Error(String(answer.status));
    const next = new DOMParser().parseFromString(await answer.text(), 'text/html');
    let all = true;
    for (const part of document.querySelectorAll('[data-live]')) {
      const other = next.getElementById(part.id);
      if (!other) continue;
      if (busy(part)) { all = false; continue; }
      if (part.matches('.chart')) {
        if (part.dataset.series === other.dataset.series) continue;
        part.replaceWith(document.adoptNode(other));
      } else if (part.innerHTML !== other.innerHTML) {
        // In place: who scrolls or stands there by keyboard stays there.
        part.replaceChildren(...[...document.adoptNode(other).childNodes]);
      }
    }
    // What was passed by because somebody is at it is shown by a later look.
    mark = all ? answer.headers.get('etag') : null;
    const refreshed = Number(next.body.dataset.refresh || 0);
    if (!refreshed && refresh) location.reload();
    drawAll();
    follow();
  }

  async function again() {
    if (!document.hidden) {
      try {
        await look();
        since = Date.now();
        if (failed) said.textContent = 'The page is up to date again.';
        failed = false;
      } catch {
        if (!failed) said.textContent = 'The page cannot be brought up to date.';
        failed = true;
      }
      tell();
    }
    setTimeout(again, refresh);
  }

  function tell() {
    if (!live) return;
    const seconds = Math.round((Date.now() - since) / 1000);
    live.hidden = false;
    live.classList.toggle('stale', failed);
    live.textContent = failed ? `not up to date for ${seconds} s` : 'live';
  }

  if (refresh) {
    tell();
    setTimeout(again, refresh);
    document.addEventListener('visibilitychange', () => { if (!document.hidden) look().catch(() => {}); });
  }

  // ---- the answer that is still coming

  let following = null;

  function follow() {
    const box = document.querySelector('[data-partial]');
    if (!box || following === box) return;
    following = box;
    const step = async () => {
      if (!box.isConnected) return;
      if (!document.hidden) {
        try {
          const { claim, seq, part } = box.dataset;
          const answer = await fetch(`${box.dataset.partial}?claim=${claim}&seq=${seq}&part=${part}`);
          if (!answer.ok) throw new Error(String(answer.status));
          const more = await answer.json();
          const same = String(more.claim) === claim && String(more.seq) === seq;
          const down = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
          if (same) box.append(document.createTextNode(more.text));
          else box.textContent = more.text;
          if (more.text) {
            document.getElementById('partial-call').textContent = more.call;
            document.getElementById('partial-before').hidden = more.call === 1;
          }
          Object.assign(box.dataset, { claim: more.claim, seq: more.seq, part: more.part });
          if (down) box.scrollTop = box.scrollHeight;
          if (more.state !== 'running') { location.reload(); return; }
        } catch { /* the bar at the top says that the page is not up to date */ }
      }
      setTimeout(step, 2000);
    };
    setTimeout(step, 1000);
  }
  follow();

  // ---- copying

  for (const box of document.querySelectorAll('pre.copy')) {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = 'Copy';
    button.addEventListener('click', async () => {
      try {
        await navigator.clipboard.writeText(box.textContent);
        button.textContent = 'Copied';
      } catch {
        getSelection().selectAllChildren(box);
        button.textContent = 'Selected: press Ctrl+C';
      }
      said.textContent = button.textContent;
    });
    box.before(button);
  }

  // ---- keys: g and a letter leads to a view, / to the first filter

  const views = { o: '/', j: '/jobs', b: '/batches', q: '/queues', g: '/gates', e: '/errors', w: '/workers', a: '/audit', c: '/config' };
  let going = 0;
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, textarea, select')) return;
    if (Date.now() - going < 1500 && views[event.key]) {
      location.assign(views[event.key]);
    } else if (event.key === 'g') {
      going = Date.now();
      return;
    } else if (event.key === '/') {
      const field = document.querySelector('.filters input:not([type=hidden])');
      if (field) { event.preventDefault(); field.focus(); }
    }
    going = 0;
  });
})();
