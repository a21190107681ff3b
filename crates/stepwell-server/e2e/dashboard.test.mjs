// The dashboard in a real browser, over a real worker: `cargo xtask test` starts `stepwell demo` and runs this.
//
//   STEPWELL_URL  where the demo serves its dashboard
//   PLAYWRIGHT    a file beside which playwright-core is installed
//   CHROMIUM      the browser
//   SCREENSHOTS   the folder that pictures go to
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, test } from "node:test";

const { STEPWELL_URL: url, PLAYWRIGHT, CHROMIUM, SCREENSHOTS } = process.env;
const { chromium } = createRequire(PLAYWRIGHT)("playwright-core");
const api = `${url}/api/v1`;

let browser;

before(async () => {
  mkdirSync(SCREENSHOTS, { recursive: true });
  const quiet = ["quic", "background-networking", "component-update", "sync"].map((what) => `--disable-${what}`);
  const args = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", ...quiet];
  browser = await chromium.launch({ executablePath: CHROMIUM, args });
});

after(() => browser?.close());

/** A page that must not complain: no error in a script, nothing that the policy forbids. */
const open = async (path, options = {}) => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  const page = await context.newPage();
  page.complaints = [];
  page.on("pageerror", (error) => page.complaints.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error") page.complaints.push(message.text());
  });
  await page.goto(url + path);
  return page;
};

const close = async (page) => {
  assert.deepEqual(page.complaints, []);
  await page.context().close();
};

const picture = (page, name) => page.screenshot({ path: join(SCREENSHOTS, `${name}.png`), fullPage: true });

const call = async (method, path, body) => {
  const response = await fetch(api + path, {
    method,
    headers: { "content-type": "application/json" },
    body: body && JSON.stringify(body),
  });
  assert.ok(response.ok, `${method} ${path}: ${response.status}`);
  return response.status === 204 ? null : response.json();
};

const order = async (customer, items, cents) => {
  const options = { headers: { customer }, max_attempts: 1 };
  const { task_id } = await call("POST", "/tasks", { task_type: "order", params: { customer, items, cents }, options });
  return task_id;
};

const reaches = async (id, state) => {
  for (;;) {
    const task = await call("GET", `/tasks/${id}`);
    if (task.state === state) return task;
    await new Promise((done) => setTimeout(done, 50));
  }
};

const state = (page) => page.locator("h1 .state");

test("a task is watched as it goes on", async () => {
  const id = await order("live", ["kettle", "teapot", "cups"], 900);
  const page = await open(`/tasks/${id}`);
  // Nobody loads the page again.
  await page.evaluate(() => { window.same = true; });
  await state(page).filter({ hasText: /running|suspended/ }).waitFor();
  await page.locator(".timeline .bar.open").first().waitFor();
  await picture(page, "task-live");
  await state(page).filter({ hasText: "completed" }).waitFor();
  assert.equal(await page.evaluate(() => window.same), true);
  const labels = await page.locator(".timeline .label").allTextContents();
  for (const step of ["check the address", "charge the card", "pick kettle", "pick cups", "ship"]) {
    assert.ok(labels.some((label) => label.includes(step)), `${step} is not in ${labels}`);
  }
  // What ran beside each other is drawn beside each other.
  const begin = (name) => page.locator(".timeline .row", { hasText: name }).locator(".bar").first().getAttribute("x");
  assert.ok(Math.abs((await begin("pick kettle")) - (await begin("pick cups"))) < 20);
  await picture(page, "task-done");
  await close(page);
});

test("an approval is given", async () => {
  const id = await order("approver", ["piano"], 99_000);
  await reaches(id, "suspended");
  const page = await open("/approvals");
  const card = page.locator(".approval", { has: page.locator(`a[href$="${id}"]`) });
  await card.getByLabel("Who decides").fill("ada");
  await card.getByLabel("Why").fill("it is a good piano");
  await picture(page, "approvals");
  await card.getByRole("button", { name: "Approve" }).click();
  await page.waitForURL(`**/tasks/${id}`);
  await state(page).filter({ hasText: "completed" }).waitFor();
  const journal = await call("GET", `/tasks/${id}/journal`);
  const decision = journal.entries.find((entry) => entry.kind === "event").value;
  assert.deepEqual([decision.by, decision.reason], ["ada", "it is a good piano"]);
  await close(page);
});

test("a task is paused, resumed and cancelled, after a question, by the keyboard", async () => {
  const id = await order("cancels", ["harp"], 99_000);
  await reaches(id, "suspended");
  const page = await open(`/tasks/${id}`);
  await page.getByRole("button", { name: "Pause", exact: true }).click();
  await page.locator("h1 .state", { hasText: "paused" }).waitFor();
  await page.getByRole("button", { name: "Resume", exact: true }).click();
  await page.getByRole("button", { name: "Pause", exact: true }).waitFor();
  await page.locator("summary", { hasText: "Cancel…" }).focus();
  await page.keyboard.press("Enter");
  await page.getByText("The task is told to end").waitFor();
  await page.keyboard.press("Escape");
  await page.getByText("The task is told to end").waitFor({ state: "hidden" });
  await page.keyboard.press("Enter");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await state(page).filter({ hasText: "cancelled" }).waitFor();
  await reaches(id, "cancelled");
  await close(page);
});

test("a failed task is undone, explained, and retried", async () => {
  const id = await order("fails", ["anvil"], 500);
  await reaches(id, "failed");
  const page = await open(`/tasks/${id}`);
  await page.locator(".failure", { hasText: "no carrier takes it" }).waitFor();
  await page.locator(".timeline .bar.undo").waitFor();
  await picture(page, "task-failed");
  await page.getByRole("button", { name: "Retry" }).click();
  await state(page).filter({ hasText: /pending|running|compensating|suspended/ }).waitFor();
  await state(page).filter({ hasText: "failed" }).waitFor();
  await close(page);
});

test("the list is filtered, and the filter is in the address", async () => {
  const id = await order("finds", ["anvil"], 500);
  await reaches(id, "failed");
  const page = await open("/tasks");
  await page.getByLabel("State").selectOption("failed");
  await page.getByLabel("Labels").fill("customer=finds");
  await page.getByRole("button", { name: "Filter" }).click();
  await page.waitForURL(/state=failed/);
  assert.equal(await page.locator("table.tasks tbody tr").count(), 1);
  await page.reload();
  assert.equal(await page.getByLabel("Labels").inputValue(), "customer=finds");
  await picture(page, "tasks");
  await page.getByLabel("Task id").fill(id);
  await page.getByRole("button", { name: "Filter" }).click();
  await page.waitForURL(`**/tasks/${id}`);
  await page.goto(`${url}/tasks?queue=nowhere`);
  await page.getByText("No tasks pass").waitFor();
  await close(page);
});

test("a queue is paused and resumed", async () => {
  const page = await open("/queues");
  await page.getByRole("button", { name: "Pause" }).click();
  await page.locator(".state.paused").waitFor();
  assert.equal((await call("GET", "/queues")).find((queue) => queue.queue === "default").paused, true);
  await page.getByRole("button", { name: "Resume" }).click();
  await page.locator(".state.paused").waitFor({ state: "detached" });
  await close(page);
});

test("it works without a script, on a narrow screen, in the dark", async () => {
  const id = await order("plain", ["cello"], 99_000);
  await reaches(id, "suspended");
  const page = await open(`/tasks/${id}`, {
    javaScriptEnabled: false,
    viewport: { width: 390, height: 800 },
    colorScheme: "dark",
  });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= 390, `the page is ${wide} wide`);
  await picture(page, "narrow-dark");
  await page.locator("summary", { hasText: "Cancel…" }).click();
  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  assert.match(await state(page).textContent(), /cancelled|compensating/);
  await close(page);
});

test("every page is there, in both schemes, and says so when there is nothing", async () => {
  for (const colorScheme of ["light", "dark"]) {
    for (const [path, title] of [["/", "Overview"], ["/workers", "Workers"], ["/schedules", "Schedules"], ["/queues", "Queues"]]) {
      const page = await open(path, { colorScheme });
      assert.equal((await page.locator("h1").textContent()).trim(), title);
      if (path === "/schedules") await page.getByText("No schedules").waitFor();
      if (path === "/") await page.locator(".chart polyline").first().waitFor({ state: "attached" });
      await picture(page, `${title.toLowerCase()}-${colorScheme}`);
      await close(page);
    }
  }
  const page = await open("/tasks/01900000-0000-7000-8000-000000000000");
  await page.getByText("There is no such thing").waitFor();
  // The browser complains of the status itself.
  page.complaints = page.complaints.filter((text) => !text.includes("404"));
  await close(page);
});
