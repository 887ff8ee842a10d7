// Signs in with headless Chromium, and approves a request on its page, or lets a
// program connect.
//
//	node browser.mjs signin  URL USER PASSWORD PROVIDER
//	node browser.mjs approve URL USER PASSWORD PROVIDER [SCREENSHOT]
//	node browser.mjs allow   URL USER PASSWORD PROVIDER [SCREENSHOT]
//
// PROVIDER is the title of the identity provider to choose. With NOSCRIPT set,
// JavaScript is off.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [action, url, user, password, provider, screenshot] = process.argv.slice(2);
let page;
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
try {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, javaScriptEnabled: !process.env.NOSCRIPT, viewport: { width: 900, height: 760 } });
  page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const complaints = [];
  page.on("console", (m) => m.type() === "error" && complaints.push(m.text()));
  await page.goto(url);
  const choice = page.getByRole("link", { name: provider });
  if (await choice.count()) await choice.click();
  await page.locator("input[name=username], input[name=user]").fill(user);
  await page.locator("input[name=password]").fill(password);
  await page.locator("input[name=password]").press("Enter");
  if (action === "signin") {
    await page.getByText("You are signed in").waitFor();
  } else if (action === "allow") {
    const allow = page.getByRole("button", { name: "Allow" });
    await allow.waitFor();
    if (screenshot) await page.screenshot({ path: screenshot });
    if (!process.env.NOSCRIPT) await accessible(page.url(), context);
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.getByText("the program is connected").waitFor();
  } else {
    const approve = page.getByRole("button", { name: "Approve" });
    await approve.waitFor();
    assert.equal(page.url(), url);
    await page.getByLabel("Comment").fill("go on");
    if (screenshot) await page.screenshot({ path: screenshot });
    if (!process.env.NOSCRIPT) await accessible(url, context);
    // With the keyboard alone: the button follows the comment.
    await page.getByLabel("Comment").focus();
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.getByText(`${user}@example.com approved at`).waitFor();
    await page.getByText("go on").waitFor();
  }
  assert.deepEqual(complaints.filter((t) => t.includes("Content Security Policy")), []);
  console.log(`Chromium: ${action} as ${user} by ${provider}${process.env.NOSCRIPT ? ", without JavaScript" : ""}`);
} catch (e) {
  console.error(page && `the browser is at ${page.url()}: ${await page.locator("body").innerText().catch(() => "")}`);
  throw e;
} finally {
  await browser.close();
}

// accessible has axe-core look at the page, which the page's own policy forbids
// scripts to do, so in a tab of its own.
async function accessible(url, context) {
  const tab = await browser.newContext({ ignoreHTTPSErrors: true, bypassCSP: true, storageState: await context.storageState() });
  const page = await tab.newPage();
  await page.goto(url);
  await page.addScriptTag({ content: readFileSync(createRequire(import.meta.url).resolve("axe-core"), "utf8") });
  const { violations } = await page.evaluate(() => window.axe.run());
  assert.deepEqual(violations.map((v) => `${v.id}: ${v.help}`), []);
  await tab.close();
}
