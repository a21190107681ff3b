// Keeps the page as it is now: asks for it again, and puts its content in the place of the old one
// when it has changed. What the reader has opened, or is writing, stays. Without this script, the
// page is as it was when it was loaded.
"use strict";
(() => {
  const FAST = 1000;
  const SLOW = 4000;
  let tag = null;
  let pause = FAST;
  let timer = 0;
  let failures = 0;

  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(look, pause);
  };

  const isBusy = (main) => {
    const active = document.activeElement;
    const writes = active && main.contains(active) && active.matches("input, textarea, select");
    const fields = [...main.querySelectorAll("input:not([type=hidden]), textarea")];
    const written = fields.some((field) => field.value !== field.defaultValue);
    const selected = String(document.getSelection() || "").length > 0;
    return writes || written || selected || main.querySelector("details.confirm[open]") !== null;
  };

  const put = (main, html) => {
    const fresh = new DOMParser().parseFromString(html, "text/html").getElementById("main");
    if (!fresh || fresh.dataset.live === undefined) return false;
    if (fresh.innerHTML === main.innerHTML) return false;
    for (const open of main.querySelectorAll("details[id][open]")) {
      const again = fresh.querySelector("#" + CSS.escape(open.id));
      if (again) again.open = true;
    }
    const focused = document.activeElement && document.activeElement.id;
    const boxes = [...main.querySelectorAll(".scroll, pre")];
    const scrolled = boxes.map((box) => [box.scrollLeft, box.scrollTop]);
    main.replaceChildren(...fresh.childNodes);
    main.querySelectorAll(".scroll, pre").forEach((box, n) => {
      if (scrolled[n]) [box.scrollLeft, box.scrollTop] = scrolled[n];
    });
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    return true;
  };

  const look = async () => {
    const main = document.querySelector("main[data-live]");
    if (!main || document.hidden) return;
    if (isBusy(main)) return later();
    try {
      const headers = { accept: "text/html" };
      if (tag) headers["if-none-match"] = tag;
      const options = { headers, cache: "no-store", redirect: "manual" };
      const response = await fetch(location.href, options);
      failures = 0;
      let changed = false;
      if (response.status === 200) {
        tag = response.headers.get("etag");
        const html = await response.text();
        changed = !isBusy(main) && put(main, html);
      }
      pause = changed ? FAST : Math.min(pause * 1.3, SLOW);
      document.body.classList.remove("offline");
    } catch {
      failures += 1;
      if (failures > 1) document.body.classList.add("offline");
      pause = SLOW;
    }
    later();
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) {
      pause = FAST;
      look();
    }
  });
  // Escape closes what asks for a confirmation, as it does everywhere else.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const open of document.querySelectorAll("details.confirm[open]")) {
      open.open = false;
      open.querySelector("summary").focus();
    }
  });
  later();
})();
