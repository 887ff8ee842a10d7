// Looks with headless Chromium at a page that broker export has written: it loads
// nothing, runs nothing, has its style, shows a frame by the keyboard and without
// JavaScript, and axe-core finds nothing in it.
//
//	node page.mjs FILE [SCREENSHOT]
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [file, screenshot] = process.argv.slice(2);
const url = pathToFileURL(file).href;
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
try {
  for (const javaScriptEnabled of [true, false]) {
    const page = await (await browser.newContext({ javaScriptEnabled, viewport: { width: 900, height: 760 } })).newPage();
    page.setDefaultTimeout(20_000);
    const asked = [];
    const complaints = [];
    page.on("request", (r) => asked.push(r.url()));
    page.on("console", (m) => complaints.push(m.text()));
    page.on("dialog", (d) => complaints.push(`a script ran: ${d.message()}`) && d.dismiss());
    await page.goto(url);
    assert.equal(await page.locator("script, img, svg, iframe, link, base").count(), 0);
    await page.keyboard.press("Tab"); // the link to the refusals
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.locator("#f1 pre").getByText('"method": "initialize"').waitFor();
    if (javaScriptEnabled) {
      assert.equal(await page.locator("ol.timeline").evaluate((e) => getComputedStyle(e).listStyleType), "none");
      if (screenshot) await page.screenshot({ path: screenshot });
    }
    assert.deepEqual([asked, complaints], [[url], []]);
  }
  for (const colorScheme of ["light", "dark"]) {
    // The page's own policy forbids axe-core, too.
    const page = await (await browser.newContext({ bypassCSP: true, colorScheme })).newPage();
    await page.goto(url);
    await page.locator("details").evaluateAll((all) => all.forEach((d) => (d.open = true)));
    await page.addScriptTag({ content: readFileSync(createRequire(import.meta.url).resolve("axe-core"), "utf8") });
    const { violations } = await page.evaluate(() => window.axe.run());
    assert.deepEqual(violations.map((v) => `${v.id}: ${v.help}`), []);
  }
  console.log("Chromium: an exported page");
} finally {
  await browser.close();
}
