// Looks at the pages of Jaeger UI in a headless Chromium: `node jaeger_ui.mjs <address of the UI> <trace id> <trace id>`. Prints a line of
// JSON for each page: its text, how many paths its drawings have, and what went wrong while it loaded.
import { createRequire } from 'node:module';
import { join } from 'node:path';

const puppeteer = createRequire(join(process.cwd(), 'here.js'))('puppeteer-core');
const [base, one, other] = process.argv.slice(2);
const pages = {
  search: '/search?service=frontend&lookback=1h&limit=20',
  tags: `/search?service=frontend&lookback=1h&limit=20&tags=${encodeURIComponent('{"error":"true"}')}`,
  trace: `/trace/${one}`,
  compare: `/trace/${one}...${other}`,
  dependencies: '/dependencies',
  monitor: '/monitor',
  deep: '/deep-dependencies?service=frontend',
};

const executablePath = process.env.SPANHOUSE_TEST_CHROMIUM || '/usr/bin/chromium';
const args = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'];
const browser = await puppeteer.launch({ executablePath, headless: true, args });
try {
  for (const [name, path] of Object.entries(pages)) {
    const page = await browser.newPage();
    await page.setViewport({ width: 1400, height: 900 });
    const wrong = [];
    page.on('pageerror', error => wrong.push(error.message));
    page.on('response', response => response.status() >= 400 && wrong.push(`${response.status()} ${response.url()}`));
    await page.goto(base + path, { waitUntil: 'networkidle0', timeout: 60000 });
    // Graphs are laid out by workers after the data is there.
    const edges = () => document.querySelectorAll('svg path[marker-end]').length;
    if (['compare', 'dependencies', 'deep'].includes(name)) {
      await page.waitForFunction(edges, { timeout: 30000 }).catch(() => wrong.push('no edge was drawn'));
    }
    const text = await page.evaluate(() => document.body.innerText);
    console.log(JSON.stringify({ name, text: text.replace(/\s+/g, ' '), edges: await page.evaluate(edges), wrong }));
    await page.close();
  }
} finally {
  await browser.close();
}
