// What the web page does in a real browser. Started by tests/it/web/browser.rs, which serves the pages:
//
//   node suite.mjs check                 everything that has to hold; exits 1 with what does not
//   node suite.mjs screenshots FOLDER    pictures of the main views, three widths and dark mode
//
// OPEN is the address of a page without a token, LOCKED of one whose token is TOKEN, READ_ONLY of one that changes nothing.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const { OPEN, LOCKED, READ_ONLY, TOKEN, CHROMIUM = '/usr/bin/chromium' } = process.env;
const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const axe = readFileSync(here('node_modules/axe-core/axe.min.js'), 'utf8');
const faults = [];
const fail = (what) => { faults.push(what); console.error(`not ok: ${what}`); };
const equal = (what, got, wanted) => { if (got !== wanted) fail(`${what}: ${JSON.stringify(got)}, not ${JSON.stringify(wanted)}`); };
const has = (what, text, part) => { if (!text.includes(part)) fail(`${what}: no ${JSON.stringify(part)} in ${JSON.stringify(text.slice(0, 300))}`); };

const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage'] });

// A page that tells of everything that must never happen.
async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15000);
  page.on('dialog', (dialog) => { fail(`a script of others ran on ${page.url()}: ${dialog.message()}`); dialog.dismiss(); });
  page.on('pageerror', (error) => fail(`an error on ${page.url()}: ${error.message}`));
  page.on('console', (line) => {
    if (/Content.Security.Policy|Refused to/i.test(line.text())) fail(`CSP on ${page.url()}: ${line.text()}`);
  });
  page.on('request', (request) => {
    const host = new URL(request.url()).host;
    if (![OPEN, LOCKED, READ_ONLY].some((ours) => new URL(ours).host === host) && !request.url().startsWith('data:')) fail(`${page.url()} asks ${request.url()}`);
  });
  await context.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  return page;
}

async function look(page, path, { audit = true } = {}) {
  const answer = await page.goto(path.startsWith('http') ? path : OPEN + path, { waitUntil: 'load' });
  const violations = await page.evaluate(() => window.violations);
  if (violations.length) fail(`CSP reports on ${path}: ${violations}`);
  if (audit) await accessible(page, path);
  return answer;
}

async function accessible(page, what) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  for (const violation of found.violations.filter((one) => ['serious', 'critical'].includes(one.impact))) {
    fail(`axe on ${what}: ${violation.id}: ${violation.nodes.map((node) => `${node.target} ${node.failureSummary}`).join('; ').slice(0, 600)}`);
  }
}

const VIEWS = ['/', '/?window=24h', '/jobs', '/jobs?state=done&outcome=failed', '/jobs?batch=nowhere', '/jobs/1', '/jobs/1?show=prompt',
  '/jobs/1/again', '/batches', '/batches?open=on', '/batch?name=nightly-2026-11-22', '/queues', '/workers', '/gates', '/gates?all=on', '/errors',
  '/audit', '/config', '/config?all=on', '/jobs/99999999', '/nothing-here'];

async function check() {
  await views();
  await withoutScript();
  await hostile();
  await live();
  await actions();
  await readOnly();
  await door();
  await forged();
}

// Every view, light and dark, wide and narrow: no CSP report, no serious finding of axe, nothing wider than its screen.
async function views() {
  for (const options of [{}, { colorScheme: 'dark' }, { viewport: { width: 390, height: 844 }, hasTouch: true }]) {
    const page = await open(options);
    for (const path of VIEWS) {
      await look(page, path);
      const [wide, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      if (wide > screen) fail(`${path} is ${wide} wide on a screen of ${screen}`);
    }
    await page.context().close();
  }
  const page = await open();
  await look(page, '/', { audit: false });
  equal('charts drawn', await page.locator('.plot.drawn canvas').count(), 2);
  await page.keyboard.press('g');
  await page.keyboard.press('j');
  await page.waitForURL('**/jobs');
  await page.keyboard.press('/');
  equal('the key / leads to the filter', await page.evaluate(() => document.activeElement.name), 'queue');
  await page.goto(OPEN + '/jobs');
  await page.keyboard.press('Tab');
  equal('the first key leads past the navigation', await page.evaluate(() => document.activeElement.className), 'skip');
  await page.context().close();
}

// Read and changed without JavaScript.
async function withoutScript() {
  const page = await open({ javaScriptEnabled: false });
  for (const path of ['/', '/jobs', '/jobs/1', '/batches', '/batch?name=nightly-2026-11-22', '/queues', '/gates', '/errors', '/workers', '/audit',
    '/config?all=on', '/jobs/1?show=prompt', '/jobs/1/again']) {
    await page.goto(OPEN + path);
    if (!(await page.locator('main h1').count())) fail(`${path} has no heading without JavaScript`);
  }
  await page.goto(OPEN + '/');
  if (!(await page.locator('.plot svg rect').count())) fail('no chart without JavaScript');
  await page.goto(OPEN + '/jobs?queue=interactive');
  const before = await page.locator('tbody tr').count();
  if (before < 1 || before > 50) fail(`${before} jobs in the list`);
  await page.goto(OPEN + '/queues');
  await page.getByRole('button', { name: 'Pause interactive' }).click();
  has('a queue is paused by a form', await page.locator('main').innerText(), 'paused');
  await page.getByRole('button', { name: 'Let interactive flow' }).click();
  await page.context().close();
}

// What models say is text, with JavaScript and after each look.
async function hostile() {
  const page = await open();
  for (const path of ['/batch?name=' + encodeURIComponent('<img src=x onerror=alert(1)>'), '/jobs?queue=hostile', '/errors', '/gates', '/audit']) {
    await look(page, path, { audit: false });
  }
  await page.goto(OPEN + '/jobs?queue=hostile');
  const jobs = await page.locator('tbody th a').evaluateAll((links) => links.map((link) => link.getAttribute('href')));
  if (jobs.length < 6) fail(`the corpus has ${jobs.length} jobs`);
  for (const job of jobs) {
    for (const path of [job, `${job}?show=prompt`, `${job}/again`]) {
      await look(page, path, { audit: false });
      const odd = await page.evaluate(() => document.querySelectorAll('main img, main script, main iframe, main svg[onload], main [onerror], main a[href^="javascript:"], pre.said *').length);
      if (odd) fail(`${path} has ${odd} elements of a model`);
      const [wide, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      if (wide > screen) fail(`${path} is ${wide} wide`);
    }
  }
  // What the page fetches by itself is put into it by another way.
  await page.goto(OPEN + '/jobs?queue=hostile');
  await page.waitForResponse((answer) => answer.request().resourceType() === 'fetch' && answer.url().includes('queue=hostile'));
  await page.waitForTimeout(300);
  const odd = await page.evaluate(() => document.querySelectorAll('main img, main script, main iframe, main [onerror], main a[href^="javascript:"]').length);
  if (odd) fail(`after a look of its own the list has ${odd} elements of a model`);
  await page.context().close();
}

// A running answer grows, as text.
async function live() {
  const page = await open();
  await page.goto(OPEN + '/jobs?state=running');
  const job = await page.locator('tbody th a').first().getAttribute('href');
  await look(page, job, { audit: false });
  const box = page.locator('[data-partial]');
  const first = await box.innerText();
  await page.waitForFunction((length) => document.querySelector('[data-partial]').textContent.length > length, first.length);
  const text = await box.evaluate((node) => node.textContent);
  if (!text.startsWith(first.trimEnd())) fail('the answer did not go on where it was');
  has('the stream is text', text, '<b>part');
  equal('no element came with the stream', await box.locator('*').count(), 0);
  await page.context().close();
}

async function actions() {
  const page = await open();
  const main = () => page.locator('main').innerText();
  // Choose two pending jobs, prioritise them, cancel one.
  await page.goto(OPEN + '/jobs?state=pending&queue=interactive');
  await page.locator('td.tick input').nth(0).check();
  await page.locator('td.tick input').nth(1).check();
  await page.locator('#chosen input[name=priority]').fill('9');
  await page.locator('#chosen button[value=prioritise]').click();
  await page.waitForLoadState();
  equal('priority set', await page.locator('tbody tr').filter({ has: page.getByRole('cell', { name: '9', exact: true }) }).count(), 2);
  const job = await page.locator('tbody th a').first().getAttribute('href');
  await page.goto(OPEN + job);
  await page.getByRole('button', { name: 'Cancel' }).click();
  await page.waitForLoadState();
  has('cancelled', await main(), 'cancelled');
  await page.getByRole('button', { name: 'Run again' }).click();
  await page.waitForLoadState();
  has('run again', await main(), 'pending');
  // Ask again with changes.
  await page.getByRole('link', { name: 'Ask again with changes' }).click();
  await page.locator('textarea[name=prompt]').fill('Another question\nof two lines');
  await page.getByRole('button', { name: 'Insert the new job' }).click();
  await page.waitForURL(/jobs\/\d+$/);
  await page.getByRole('link', { name: 'Show prompt' }).click();
  has('the new prompt', await main(), 'Another question\nof two lines');
  await page.getByText('Copy as SQL').click();
  await page.locator('details[open] button').click();
  has('copied', await page.locator('details[open] button').innerText(), 'op');
  await accessible(page, 'a job with its prompt');
  // All that match.
  await page.goto(OPEN + '/jobs?state=pending&batch=to-cancel');
  await page.locator('form[action="/bulk"] button[value=cancel]').click();
  await page.waitForLoadState();
  has('counted', await main(), '700 jobs');
  await accessible(page, 'the count');
  await page.getByRole('button', { name: /Yes, cancel 700 jobs/ }).click();
  await page.waitForURL(/bulk\/\d+$/);
  await page.getByText('Done in').waitFor();
  await accessible(page, 'a bulk change');
  has('changed', await main(), '700 changed of 700');
  // The jobs of a batch, and a priority for all that match.
  const bulk = async (button, sentence) => {
    await button.click();
    await page.getByRole('button', { name: `Yes, ${sentence}` }).click();
    await page.waitForURL(/bulk\/\d+$/);
    await page.getByText('Done in').waitFor();
    has(sentence, await main(), '700 changed of 700');
  };
  await page.goto(OPEN + '/batch?name=to-cancel');
  await bulk(page.getByRole('button', { name: 'Run all done ones again…' }), 'run again 700 jobs');
  await page.goto(OPEN + '/jobs?state=pending&batch=to-cancel');
  await page.locator('form[action="/bulk"] input[name=priority]').fill('4');
  await bulk(page.locator('form[action="/bulk"] button[value=prioritise]'), 'set to priority 4 700 jobs');
  await page.goto(OPEN + '/batch?name=to-cancel');
  await bulk(page.getByRole('button', { name: 'Cancel what is not done…' }), 'cancel 700 jobs');
  await page.goto(OPEN + '/jobs?state=done&batch=to-cancel');
  await bulk(page.locator('form[action="/bulk"] button[value=run_again]'), 'run again 700 jobs');
  // Chosen ones cancelled and run again, and one that runs now.
  const chosen = async (list, action, then) => {
    await page.goto(OPEN + list);
    const one = await page.locator('tbody th a').first().getAttribute('href');
    await page.locator('td.tick input').first().check();
    await page.locator(`#chosen button[value=${action}]`).click();
    await page.waitForLoadState();
    await page.goto(OPEN + one);
    has(`a chosen job: ${action}`, await main(), then);
  };
  await chosen('/jobs?state=scheduled', 'cancel', 'cancelled');
  await chosen('/jobs?queue=nightly&state=done', 'run_again', 'pending');
  await page.goto(OPEN + '/jobs?state=scheduled');
  await page.locator('tbody th a').first().click();
  await page.getByRole('button', { name: 'Run now' }).click();
  await page.waitForLoadState();
  has('run now', await main(), 'pending');
  // A batch, a gate, a queue.
  await page.goto(OPEN + '/batch?name=nightly-2026-11-22');
  await page.getByRole('button', { name: 'Pause' }).click();
  await page.waitForLoadState();
  has('a batch is paused', await main(), 'paused by a person');
  await page.getByRole('button', { name: 'Let it flow' }).click();
  await page.waitForLoadState();
  if ((await main()).includes('paused by a person')) fail('the batch still stands');
  const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: 'CSV' }).click()]);
  equal('the file is named', download.suggestedFilename(), 'nightly-2026-11-22.csv');
  const [lines] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: 'JSONL' }).click()]);
  equal('the file of lines is named', lines.suggestedFilename(), 'nightly-2026-11-22.jsonl');
  await page.goto(OPEN + '/gates');
  await page.getByRole('form', { name: 'batch:default/summaries' }).getByRole('button', { name: 'Let it fail' }).click();
  await page.waitForLoadState();
  await page.goto(OPEN + '/gates?all=on');
  has('a batch may fail', await main(), 'a person lets it fail');
  await page.goto(OPEN + '/gates');
  await page.locator('input[name=scope]').last().fill('model:default/from-the-browser');
  await page.getByRole('button', { name: 'Block' }).click();
  await page.waitForLoadState();
  has('a gate is blocked', await main(), 'from-the-browser');
  await page.getByRole('form', { name: 'from-the-browser' }).getByRole('button', { name: 'Let it flow' }).click();
  await page.waitForLoadState();
  await page.goto(OPEN + '/queues');
  await page.getByLabel('Jobs of interactive at once').fill('3');
  await page.getByRole('button', { name: 'Limit interactive' }).click();
  await page.waitForLoadState();
  equal('a queue is limited', await page.getByLabel('Jobs of interactive at once').inputValue(), '3');
  await page.goto(OPEN + '/audit');
  const audit = await main();
  for (const word of ['prioritise', 'cancel', 'run_again', 'ask_again', 'bulk_end', 'pause', 'resume', 'block', 'free', 'let_fail', 'limit']) has('audit', audit, word);
  await page.context().close();
}

// A page that only shows has nothing to press, and obeys nobody.
async function readOnly() {
  const page = await open();
  for (const path of VIEWS) {
    await look(page, READ_ONLY + path, { audit: false });
    const forms = await page.locator('main form[method=post]').count();
    if (forms) fail(`${path} has ${forms} forms on a page that is read-only`);
  }
  const answer = await page.request.post(`${READ_ONLY}/act/queue`, { form: { queue: 'default', action: 'pause' } });
  equal('a change on a page that is read-only', answer.status(), 403);
  await page.context().close();
}

async function door() {
  const page = await open();
  await look(page, LOCKED + '/queues');
  has('led to the door', page.url(), '/login');
  await page.getByLabel('Token').fill('wrong');
  await page.getByRole('button', { name: 'Enter' }).click();
  has('refused', await page.locator('main').innerText(), 'That is not the token');
  await accessible(page, 'the door');
  await page.getByLabel('Token').fill(TOKEN);
  await page.getByRole('button', { name: 'Enter' }).click();
  await page.waitForURL(LOCKED + '/queues');
  const [cookie] = await page.context().cookies();
  equal('the cookie', `${cookie.httpOnly} ${cookie.sameSite} ${cookie.path}`, 'true Strict /');
  await page.getByRole('button', { name: 'Leave' }).click();
  await page.goto(LOCKED + '/');
  has('outside again', page.url(), '/login');
  await page.context().close();
}

// Another site's form, and a name that is not ours.
async function forged() {
  const page = await open();
  const { port } = new URL(OPEN);
  await page.route('http://127.0.0.2:*/**', (route) => route.fulfill({
    contentType: 'text/html',
    body: `<form method="post" action="${OPEN}/act/queue"><input name="queue" value="default"><input name="action" value="pause"><button>Go</button></form>`,
  }));
  page.removeAllListeners('request');
  await page.goto('http://127.0.0.2:1/');
  const [answer] = await Promise.all([page.waitForResponse('**/act/queue'), page.getByRole('button').click()]);
  equal('a forged form', answer.status(), 403);
  const forgedOrigin = await page.request.post(`${OPEN}/act/queue`, { headers: { origin: 'http://evil.example' }, form: { queue: 'default', action: 'pause' } });
  equal('a forged origin', forgedOrigin.status(), 403);
  const foreign = await page.request.get(`${OPEN}/`, { headers: { host: `evil.example:${port}` } });
  equal('a foreign host', foreign.status(), 421);
  await page.context().close();
}

const SHOTS = [
  ['overview', '/', 1280, 800], ['jobs', '/jobs?queue=nightly&state=done', 1280, 720], ['job', '/jobs/1', 1280, 760],
  ['job-running', '/jobs?state=running', 1280, 620], ['batch', '/batch?name=nightly-2026-11-22', 1280, 760],
  ['gates', '/gates', 1280, 560], ['errors', '/errors', 1280, 420],
  ['overview-tablet', '/', 820, 1000], ['overview-phone', '/', 390, 844], ['jobs-phone', '/jobs?queue=nightly&state=done', 390, 844],
];

async function screenshots(folder) {
  const quick = process.env.ASSETS;
  for (const colorScheme of ['light', 'dark']) {
    for (const [name, path, width, height] of SHOTS) {
      if (colorScheme === 'dark' && !['overview', 'job'].includes(name)) continue;
      const page = await open({ colorScheme, viewport: { width, height } });
      if (quick) await page.route('**/assets/page.*', (route) => route.fulfill({ path: join(quick, new URL(route.request().url()).pathname.slice(8)) }));
      await page.goto(OPEN + path);
      if (name === 'job-running') {
        await page.locator('tbody th a').first().click();
        await page.waitForLoadState();
      }
      await page.waitForTimeout(250);
      await page.screenshot({ path: join(folder, colorScheme === 'dark' ? `${name}-dark.png` : `${name}.png`) });
      await page.context().close();
    }
  }
}

const [mode, folder] = process.argv.slice(2);
try {
  if (mode === 'screenshots') await screenshots(folder);
  else await check();
} catch (error) {
  fail(error.stack);
}
await browser.close();
if (faults.length) console.error(`${faults.length} things do not hold`);
process.exit(faults.length ? 1 : 0);
