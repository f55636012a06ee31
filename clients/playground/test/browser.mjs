// Uses the playground in a real browser, mostly with the keyboard, and prints what it found as JSON:
// node browser.mjs CHROMIUM URL [FOLDER-OF-SCREENSHOTS]

import { chromium } from "playwright-core";

const [program, url, screenshots] = process.argv.slice(2);
const found = { errors: [], elsewhere: [] };
const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });

async function open(width, height, colorScheme) {
  const page = await browser.newPage({ viewport: { width, height }, colorScheme });
  page.setDefaultTimeout(60_000);
  page.on("console", (message) => message.type() === "error" && !message.text().includes("status of 4") && found.errors.push(message.text()));
  page.on("pageerror", (error) => found.errors.push(error.message));
  page.on("request", (request) => new URL(request.url()).origin !== new URL(url).origin && found.elsewhere.push(request.url()));
  await page.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective}`));
  });
  await page.goto(url);
  await ready(page);
  return page;
}

/** The tokens are shown and all of them were read. */
async function ready(page) {
  await page.waitForFunction(() => {
    const tokens = [...document.querySelectorAll(".token.private")];
    const send = document.getElementById("send");
    return !send.disabled && tokens.every((token) => token.querySelector(".guess").textContent);
  });
}

/** The page has taken up a change of the text, the marks or the level. The button may be disabled for an instant only. */
async function changed(page, act) {
  await page.evaluate(() => {
    const send = document.getElementById("send");
    window.takenUp = false;
    new MutationObserver(() => (window.takenUp ||= send.disabled)).observe(send, { attributeFilter: ["disabled"] });
  });
  await act();
  await page.waitForFunction(() => window.takenUp);
  await ready(page);
}

const marks = (page) => page.$$eval("#marks mark", (all) => all.map((mark) => mark.textContent));
const figures = (page) => page.$$eval(".figure", (all) => all.map((figure) => figure.querySelector(".value").textContent));
const answer = (page, which) => page.textContent(`#${which}-answer`);
const written = (page, which) =>
  page.waitForFunction((id) => /bytes sent/.test(document.getElementById(id).textContent), `${which}-meta`);
const shot = (page, name) => screenshots && page.screenshot({ path: `${screenshots}/${name}.png`, fullPage: true });

// A question is private as a whole, drawn and read before anything is sent.
let page = await open(1280, 860, "light");
found.title = await page.textContent("h1");
found.first = { marks: await marks(page), tokens: await page.locator(".token.private").count(), figures: await figures(page) };
await shot(page, "light");

// With the keyboard alone: other text, the detectors, a word marked by hand, another level, and the counts are sent.
await page.keyboard.press("Tab");
await page.keyboard.press("Enter");
found.skipped = await page.evaluate(() => document.activeElement.id);
await page.keyboard.press("ControlOrMeta+a");
await changed(page, () => page.keyboard.type("Call Ann at +49 30 901820 now", { delay: 1 }));
for (const _ of ["toggle", "detect"]) await page.keyboard.press("Tab");
await changed(page, () => page.keyboard.press("Enter"));
found.detected = await marks(page);
await page.keyboard.press("Shift+Tab");
await page.keyboard.press("Shift+Tab");
await page.keyboard.press("ControlOrMeta+Home");
for (let i = 0; i < 6; i++) await page.keyboard.press("ArrowRight");
await changed(page, () => page.keyboard.press("ControlOrMeta+b"));
found.marked = await marks(page);
await changed(page, () => page.keyboard.type("n"));
found.typed = await marks(page);
const level = () => page.evaluate(() => document.querySelector("input[name=level]:checked").value);
const before = await level();
await page.locator("input[name=level]:checked").focus();
await changed(page, () => page.keyboard.press("ArrowDown"));
found.levels = [before, await level()];
found.alone = await figures(page);
await page.locator("#text").focus();
await page.keyboard.press("ControlOrMeta+Enter");
await written(page, "private");
found.answer = await answer(page, "private");
found.notAsked = await answer(page, "clear");
found.public = await page.$$eval(".token.public .own", (all) => all.map((part) => part.textContent));

// The same text again, beside the clear one: only if somebody asks for it.
await page.locator("#compare").focus();
await page.keyboard.press("Space");
await page.locator("#send").focus();
await page.keyboard.press("Enter");
await written(page, "clear");
found.clear = await answer(page, "clear");
found.again = await figures(page);
await shot(page, "compared");

// Markup in the text stays text.
await changed(page, () => page.locator("#text").fill("<img src=x onerror=alert(1)><b>bold</b>"));
found.markup = await page.locator("main img, main .own b").count();
// A level that was chosen before still has the counts that were drawn then.
const pixels = () => page.$eval(".token.private canvas", (canvas) => canvas.toDataURL());
await page.locator("#detect").click();
await page.locator("#all").click();
await ready(page);
const drawn = await pixels();
const other = page.locator("input[name=level]:not(:checked)").first();
const chosen = page.locator(`input[value="${await level()}"]`);
await changed(page, () => other.check());
await changed(page, () => chosen.check());
found.kept = (await pixels()) === drawn;
await page.close();

// On a phone, in the dark: nothing is wider than the screen, and the button changes the theme.
page = await open(390, 844, "dark");
found.phone = await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const dark = await background();
await shot(page, "phone-dark");
await page.locator("#theme").click();
found.themes = [dark, await background()];
await page.locator("#send").click();
await page.waitForFunction(() => /bytes sent|failed/.test(document.querySelector("#private-meta").textContent + document.querySelector("#private-answer").className));
found.refused = await answer(page, "private");
await shot(page, "phone-light");
await browser.close();
console.log(JSON.stringify(found));
