// The live page in a real browser: loads, keeps, explains and unloads models, by mouse and by
// keyboard, survives a restart of the server, asks for an operator's key where there is one, and has
// no accessibility finding in light and dark, wide and narrow.
//
// usage: node live_page.mjs MODE ADMIN_URL CHROMIUM ...
//   open ADMIN_URL CHROMIUM GOOD BROKEN   writes `stop`, then `start`: the server is to go, and to come again
//   key ADMIN_URL CHROMIUM KEY
//   containers ADMIN_URL CHROMIUM ADDRESS  an endpoint `pipe` with a container that fails, and one at ADDRESS

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { cwd } from "node:process";
import { join } from "node:path";

// Packages are where the process was started, not beside this file.
const require = createRequire(join(cwd(), "here.js"));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [mode, url, executablePath, ...rest] = process.argv.slice(2);
/** Long: the machine may be busy. */
const PATIENCE = 120_000;
const WIDE = { width: 1440, height: 900 };
const NARROW = { width: 390, height: 844 };
// A browser of its own, that talks to nobody but the page's server.
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

const browser = await chromium.launch({ executablePath, args: FLAGS });

/** A page whose errors, dialogs of the browser and requests elsewhere are found out. */
async function visit(options = {}) {
  const context = await browser.newContext({ viewport: WIDE, ...options });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(`error: ${error.stack}`));
  page.on("dialog", (dialog) => {
    wrong.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) wrong.push(`request: ${request.url()}`);
  });
  page.on("console", (message) => {
    if (/Content.Security.Policy|TrustedHTML/i.test(message.text())) wrong.push(`policy: ${message.text()}`);
  });
  await page.goto(url);
  return { page, wrong };
}

const live = (page) => page.locator("#link.live").waitFor();
const row = (page, target) => page.getByRole("row").filter({ has: page.getByRole("button", { name: target, exact: true }) });
const says = (page, target, state) => row(page, target).getByText(state, { exact: true }).waitFor();

async function open(page, target) {
  await page.getByLabel("Search models").fill(target);
  await row(page, target).getByRole("button").click();
  await page.locator("#model[open]").waitFor();
}

/** Presses a button of the open model, and says that it is meant. */
async function wish(page, name) {
  await page.locator("#model").getByRole("button", { name, exact: true }).click();
  const confirm = page.locator("#confirm");
  await confirm.getByRole("button", { name, exact: true }).click();
  await confirm.waitFor({ state: "hidden" });
}

async function judge(page, where) {
  await page.evaluate(AXE);
  const { violations, passes } = await page.evaluate(() => globalThis.axe.run());
  const told = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  assert.deepEqual(told, [], where);
  assert(passes.some(({ id }) => id === "color-contrast"), `${where}: contrast was looked at`);
}

async function judgeAll(good) {
  for (const colorScheme of ["light", "dark"]) {
    for (const viewport of [WIDE, NARROW]) {
      const { page, wrong } = await visit({ colorScheme, viewport });
      const where = `${colorScheme}, ${viewport.width}`;
      await live(page);
      await row(page, good).waitFor();
      await judge(page, where);
      const wide = await page.evaluate(() => document.scrollingElement.scrollWidth);
      assert(wide <= viewport.width, `${where}: it is ${wide} wide`);
      await open(page, good);
      await page.locator("#model .history li").first().waitFor();
      await judge(page, `${where}, a model`);
      await page.locator("#model").getByRole("button", { name: "Unload", exact: true }).click();
      await judge(page, `${where}, a question`);
      await page.keyboard.press("Escape");
      assert.deepEqual(wrong, []);
      await page.context().close();
    }
  }
}

async function drive(good, broken) {
  const { page, wrong } = await visit();
  await live(page);
  await page.getByLabel("Theme").selectOption("dark");
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");

  await open(page, good);
  const model = page.locator("#model");
  await model.getByText("not loaded", { exact: true }).waitFor();
  await wish(page, "Load");
  await model.getByText(/^Ready on cpu/).waitFor();
  await model.locator(".why").getByText(/serves on cpu/).waitFor();
  await model.locator(".history").getByText(/^ready, takes/).waitFor();
  await wish(page, "Keep");
  await model.getByText("Kept.", { exact: true }).waitFor();
  await model.getByRole("button", { name: "Close" }).click();
  await says(page, good, "ready, kept");
  await page.locator("#log").getByText(/^ready, takes/).first().waitFor();
  await page.getByRole("img", { name: /^Device cpu: .* by 1 model;/ }).waitFor();

  await open(page, broken);
  await wish(page, "Load");
  await model.getByRole("alert").getByText(/./).waitFor();
  await page.keyboard.press("Escape");
  await page.locator("#banners").getByText("A load failed").waitFor();
  await says(page, broken, "failed");
  // What looks like markup is a name.
  assert.equal(await page.locator("main b, main img").count(), 0);
  await judgeAll(good);

  console.log("stop");
  await page.locator("#link.lost").waitFor();
  await page.locator("#banners").getByText("Disconnected").waitFor();
  console.log("start");
  await live(page);
  await page.locator("#banners").getByText("The server was started anew").waitFor();
  await page.getByRole("img", { name: /^Device cpu: .* by 0 models;/ }).waitFor();

  // By keyboard alone.
  await page.getByLabel("Search models").focus();
  await page.getByLabel("Search models").fill(good);
  await says(page, good, "not loaded");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await model.getByRole("button", { name: "Load", exact: true }).focus();
  await page.keyboard.press("Enter");
  await page.locator("#confirm[open]").waitFor();
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await model.getByText(/^Ready on cpu/).waitFor();
  await wish(page, "Unload");
  await model.getByText("Unloaded.", { exact: true }).waitFor();
  await page.keyboard.press("Escape");
  await says(page, good, "not loaded");
  assert.deepEqual(wrong, []);
}

async function withKey(key) {
  const { page, wrong } = await visit();
  const field = page.getByLabel("Key", { exact: true });
  await field.waitFor();
  await judge(page, "the question for a key");
  await field.fill("no-such-key");
  await field.press("Enter");
  await page.locator("#key-error").getByText(/no operator/).waitFor();
  await field.fill(key);
  await field.press("Enter");
  await live(page);
  await page.locator("#models-table .filler button").first().waitFor();
  const kept = await page.evaluate(() => JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie);
  assert(!kept.includes(key), "the key is nowhere but in memory");
  assert.deepEqual(wrong, []);
}

/** Those that fail come first, with why; each with its address and its requests. */
async function containers(address) {
  for (const colorScheme of ["light", "dark"]) {
    const { page, wrong } = await visit({ colorScheme, viewport: NARROW });
    await live(page);
    const all = page.locator("#containers li");
    const fails = all.filter({ hasText: "pipe:absent" });
    await fails.getByText("left alone after failures", { exact: true }).waitFor();
    await fails.getByText(/^Failed last at .*: no connection/).waitFor();
    const fine = all.filter({ hasText: "pipe:fine" });
    await fine.getByText("healthy", { exact: true }).waitFor();
    await fine.getByText(`${address}, 0 of 256 requests under way`, { exact: true }).waitFor();
    assert.match(await all.first().textContent(), /^pipe:absent/);
    await page.locator("#containers-note").getByText("1 not well").waitFor();
    await judge(page, `containers, ${colorScheme}`);
    assert.deepEqual(wrong, []);
    await page.context().close();
  }
}

if (mode === "key") await withKey(...rest);
else if (mode === "containers") await containers(...rest);
else await drive(...rest);
await browser.close();
console.log("done");
