// The chat page. What goes over the wire is described in web_messages.py.
// Everything that is said is set as text, never as markup.
"use strict";

const element = (id) => document.getElementById(id);
const [chat, text, to, form, statusLine, problem] = ["chat", "text", "to", "composer", "status", "problem"].map(element);
const modalities = document.body.dataset.modalities.split(" ").filter(Boolean);
const maxUploadMb = Number(document.body.dataset.maxUploadMb);
const WORD = { image: "Picture", speech: "Speech", music: "Music", voice: "Voice to answer in" };
const attached = []; // {id, name, kind, url, use}
let answering = null; // aborts the answer that is being written

for (const modality of modalities) to.append(new Option(modality === "image" ? "a picture" : modality, modality));

for (const example of JSON.parse(document.body.dataset.examples)) {
  const button = make("button", { type: "button", textContent: example });
  button.addEventListener("click", () => {
    text.value = example;
    text.dispatchEvent(new Event("input"));
    text.focus();
  });
  element("examples").append(button);
}

// What is shown

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function complain(message) {
  problem.querySelector("span").textContent = message;
  problem.hidden = !message;
}

function medium(modality, url, name) {
  const title = name || WORD[modality];
  const caption = make("figcaption", {}, make("span", { textContent: name ? `${WORD[modality]}: ${name}` : WORD[modality] }));
  if (!name) caption.append(make("a", { href: url, download: "", textContent: "Download" }));
  const shown =
    modality === "image"
      ? make("img", { src: url, alt: title })
      : make("audio", { src: url, controls: true, preload: "auto", title });
  shown.addEventListener("load", scrollDown);
  return make("figure", { className: modality }, shown, caption);
}

function showMessage(asked) {
  const article = make("article", { className: "mine" });
  for (const file of asked.files) article.append(medium(file.as, file.url, file.name));
  if (asked.text) article.append(make("p", { textContent: asked.text }));
  chat.append(article);
  element("empty").hidden = true;
  scrollDown();
}

function showAnswer() {
  const article = make("article", { className: "model" });
  chat.append(article);
  return article;
}

function showLine(article, line) {
  const last = article.lastElementChild;
  if (line.kind === "waiting") {
    statusLine.textContent = waitingWords(line.before);
  } else if (line.kind === "text") {
    const className = line.heard ? "heard" : "said";
    if (last && last.className === className) last.append(line.text);
    else article.append(make("p", { className, textContent: line.heard ? line.text : line.text.trimStart() }));
  } else if (line.kind === "medium") {
    article.append(medium(line.modality, line.url));
  } else if (line.kind === "error") {
    article.append(make("p", { className: "broken", textContent: `No answer: ${line.message}` }));
  } else if (line.kind === "done") {
    if (!last) article.append(make("p", { className: "note", textContent: "(an empty answer)" }));
    for (const notice of line.notices) article.append(make("p", { className: "note", textContent: notice }));
  }
  scrollDown();
}

function waitingWords(before) {
  if (before === 0) return "Writing …";
  return `Waiting: ${before} ${before === 1 ? "person is" : "people are"} before you`;
}

function scrollDown() {
  element("pane").scrollTop = element("pane").scrollHeight;
}

// Talking to the server

async function reasonOf(response) {
  const body = await response.json().catch(() => ({}));
  return body.error || `the server answered ${response.status}; see its log`;
}

async function post(address, type, body, signal) {
  const response = await fetch(address, { method: "POST", headers: { "Content-Type": type }, body, signal });
  if (!response.ok) throw new Error(await reasonOf(response));
  return response;
}

const postJson = (address, content, signal) => post(address, "application/json", JSON.stringify(content), signal);

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const whole = (rest + part.value).split("\n");
    rest = whole.pop();
    for (const line of whole) yield JSON.parse(line);
  }
}

async function ask(asked) {
  answering = new AbortController();
  element("send").textContent = "Stop";
  statusLine.textContent = "Sending …";
  let article = null;
  let ended = false;
  try {
    const files = asked.files.map((file) => ({ id: file.id, as: file.as }));
    const response = await postJson("/ask", { text: asked.text, files, to: to.value }, answering.signal);
    showMessage(asked);
    attached.length = 0;
    showAttached();
    text.value = "";
    grow();
    article = showAnswer();
    for await (const line of lines(response)) {
      showLine(article, line);
      ended = ended || line.kind === "done" || line.kind === "error";
    }
    if (!ended) throw new Error("the connection broke off");
  } catch (error) {
    const stopped = error.name === "AbortError";
    const words = stopped ? "Stopped; the model will not remember this question." : error.message;
    if (article) article.append(make("p", { className: stopped ? "note" : "broken", textContent: words }));
    else if (!stopped) complain(words);
  } finally {
    answering = null;
    element("send").textContent = "Send";
    statusLine.textContent = "";
    scrollDown();
  }
}

// Files

async function upload(file) {
  complain("");
  if (file.size > maxUploadMb * 1e6) {
    complain(`“${file.name}” is not taken: expected at most ${maxUploadMb} MB, found ${(file.size / 1e6).toFixed(1)} MB; cut it or make it smaller`);
    return;
  }
  statusLine.textContent = `Uploading ${file.name} …`;
  try {
    const address = `/upload?name=${encodeURIComponent(file.name)}`;
    const taken = await (await post(address, "application/octet-stream", file)).json();
    attached.push({ ...taken, use: taken.kind === "picture" ? "image" : "speech" });
    showAttached();
  } catch (error) {
    complain(error.message);
  } finally {
    if (!answering) statusLine.textContent = "";
  }
}

async function uploadAll(files) {
  for (const file of files) await upload(file);
}

function showAttached() {
  const items = attached.map((file) => {
    const remove = make("button", { type: "button", className: "quiet", textContent: "×", ariaLabel: `Remove ${file.name}` });
    remove.addEventListener("click", () => {
      attached.splice(attached.indexOf(file), 1);
      showAttached();
    });
    const item = make("li");
    if (file.kind === "picture") item.append(make("img", { src: file.url, alt: "" }));
    item.append(make("span", { className: "name", textContent: file.name, title: file.name }));
    if (file.kind === "sound") item.append(useOf(file));
    item.append(remove);
    return item;
  });
  element("attached").replaceChildren(...items);
  scrollDown();
}

function useOf(file) {
  const select = make("select", { ariaLabel: `What ${file.name} is` });
  const uses = ["speech", "music"].filter((use) => modalities.includes(use));
  if (document.body.dataset.voice) uses.push("voice");
  for (const use of uses) select.append(new Option(WORD[use], use, false, use === file.use));
  select.addEventListener("change", () => (file.use = select.value));
  return select;
}

// The microphone

let recorder = null;
let recordings = 0;

async function record() {
  complain("");
  const button = element("record");
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const chunks = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => chunks.push(event.data);
    recorder.onstop = async () => {
      for (const track of stream.getTracks()) track.stop();
      clearInterval(clock);
      recorder = null;
      button.textContent = "Record";
      button.classList.remove("on");
      recordings += 1;
      await upload(await asWav(new Blob(chunks), `recording-${recordings}.wav`)).catch((error) => complain(error.message));
    };
    recorder.start();
    const start = Date.now();
    const show = () => (button.textContent = `Stop recording ${Math.floor((Date.now() - start) / 1000)} s`);
    const clock = setInterval(show, 250);
    show();
    button.classList.add("on");
  } catch (error) {
    complain(`The microphone cannot be used: ${error.message}. Allow it for this page, or add a sound file.`);
  }
}

// Browsers record into containers that few libraries read; the samples themselves are all that is wanted.
async function asWav(blob, name) {
  const context = new AudioContext();
  const sound = await context.decodeAudioData(await blob.arrayBuffer());
  context.close();
  const samples = sound.getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (offset, letters) => [...letters].forEach((letter, index) => view.setUint8(offset + index, letter.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // one channel
  view.setUint32(24, sound.sampleRate, true);
  view.setUint32(28, 2 * sound.sampleRate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  word(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, index) => view.setInt16(44 + 2 * index, Math.max(-1, Math.min(1, sample)) * 32767, true));
  return new File([view.buffer], name, { type: "audio/wav" });
}

// What a person does

function grow() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`; // its border
  text.style.overflowY = text.scrollHeight > text.clientHeight ? "auto" : "hidden";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) return answering.abort();
  complain("");
  const files = attached.map((file) => ({ id: file.id, url: file.url, name: file.name, as: file.use }));
  ask({ text: text.value.trim(), files });
});

text.addEventListener("input", grow);
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!answering) form.requestSubmit();
});
text.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) event.preventDefault();
  uploadAll([...event.clipboardData.files]);
});

element("attach").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // so that the same file can be chosen again
  uploadAll(files);
});
element("record").addEventListener("click", () => (recorder ? recorder.stop() : record()));
problem.querySelector("button").addEventListener("click", () => complain(""));

element("clear").addEventListener("click", async () => {
  if (answering) answering.abort();
  try {
    await postJson("/clear", {});
    for (const article of chat.querySelectorAll("article")) article.remove();
    attached.length = 0;
    showAttached();
    element("empty").hidden = false;
    complain("");
  } catch (error) {
    complain(error.message);
  }
});

for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    form.classList.toggle("over", name === "dragover");
    if (name === "drop") uploadAll([...event.dataTransfer.files]);
  });
}

async function showAgain() {
  const response = await fetch("/shown");
  if (!response.ok) return;
  for (const exchange of await response.json()) {
    showMessage(exchange.asked);
    const article = showAnswer();
    for (const line of exchange.answer) showLine(article, line);
  }
}

showAgain();
