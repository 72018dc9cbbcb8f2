// The duties of a client in docs/PROTOCOL.md, against a peer that says what the test tells it to: what a correct server
// does only on bad days. That the real gateway is understood is shown by the integration tests in Rust.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { WebSocketServer } from "ws";
import { addRange, directChat } from "./parley.mjs";

const CHAT = directChat("1001", "1002");
const CLIENT = fileURLToPath(new URL("client.mjs", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "parley-node-"));
after(() => rmSync(folder, { recursive: true }));

const welcome = {
  type: "welcome",
  user_id: "1001",
  name: "alice",
  resume: "ticket",
  resume_expires_at_ms: 1,
  server_time_ms: 0,
  heartbeat_interval_ms: 25000,
  payload_bytes_max: 16384,
  frame_bytes_max: 65536,
  requests_in_flight_max: 8,
};

const event = (seq) => ({
  type: "event",
  chat_id: CHAT,
  seq,
  ordinal: seq,
  message_id: String(7266900000000000000n + BigInt(seq)),
  sender: "1002",
  sender_sent: seq,
  client_msg_id: String(seq).padStart(32, "0"),
  kind: 1,
  flags: 0,
  body: { message: { content_type: "text/plain", payload: { text: `message ${seq}` } } },
});

/** A peer: `script(frame, say, socket, connection)` answers each frame; `heard` has all of them. */
async function peer(script) {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0, path: "/ws" });
  await new Promise((done) => server.once("listening", done));
  const heard = [];
  let connections = 0;
  server.on("connection", (socket, request) => {
    connections += 1;
    const connection = connections;
    const say = (...frames) => frames.forEach((frame) => socket.send(JSON.stringify(frame)));
    socket.on("message", (data) => {
      const frame = JSON.parse(data);
      heard.push({ ...frame, connection, header: request.headers.authorization, target: request.url });
      if (frame.type === "ping") say({ type: "pong", nonce: frame.nonce });
      script(frame, say, socket, connection);
    });
  });
  const url = `ws://127.0.0.1:${server.address().port}/ws`;
  const close = () => {
    server.clients.forEach((socket) => socket.terminate());
    return new Promise((done) => server.close(done));
  };
  return { url, heard, close };
}

/** Runs the client; resolves with its exit code, its frames and its stderr. */
function run(url, ...args) {
  const child = spawn(process.execPath, [CLIENT, "--url", url, "--token", "t0ken", ...args]);
  let [out, err] = ["", ""];
  child.stdout.on("data", (data) => (out += data));
  child.stderr.on("data", (data) => (err += data));
  return new Promise((done) => {
    child.on("close", (code) => {
      const frames = out.split("\n").filter(Boolean).map((line) => JSON.parse(line));
      done({ code, frames, err });
    });
  });
}

const state = (name) => join(folder, `${name}.json`);
const kept = (name) => JSON.parse(readFileSync(state(name), "utf8"));
const seqs = (frames) => frames.filter((frame) => frame.type === "event").map((frame) => frame.seq);

test("ranges merge and know what they hold", () => {
  const ranges = [];
  for (const seq of [5, 7, 6, 1, 2, 9]) assert.equal(addRange(ranges, seq, seq), true);
  assert.deepEqual(ranges, [[1, 2], [5, 7], [9, 9]]);
  assert.equal(addRange(ranges, 6, 6), false);
  assert.equal(addRange(ranges, 3, 8), true);
  assert.deepEqual(ranges, [[1, 9]]);
});

test("the id of a direct chat is the one of the document", () => {
  assert.equal(CHAT, "40000000000001f480000000000003ea");
  assert.equal(directChat("1002", "1001"), CHAT);
});

test("a mark is stored with what came before it, and presented with the ticket at the next start", async () => {
  const server = await peer((frame, say) => {
    if (frame.type !== "hello") return;
    say(welcome, event(1), event(2), { type: "mark", inbox_seq: 2, head: 2 }, event(3));
  });
  const first = await run(server.url, "--state", state("mark"), "--until-synced", "--expect", "3", "tail");
  assert.deepEqual([first.code, seqs(first.frames), kept("mark").mark], [0, [1, 2, 3], 2], first.err);
  // What lies above the mark comes again, and is dropped.
  const second = await run(server.url, "--state", state("mark"), "--until-synced", "tail");
  assert.deepEqual([second.code, seqs(second.frames)], [0, []], second.err);
  const [one, two] = server.heard.filter((frame) => frame.type === "hello");
  assert.deepEqual([one.mark, one.token, one.resume, one.target], [undefined, "t0ken", undefined, "/ws"]);
  assert.deepEqual([two.mark, two.resume, two.device_id], [2, "ticket", one.device_id]);
  await server.close();
});

test("a command without an answer is sent again under its name, on the next connection", async () => {
  const server = await peer((frame, say, socket, connection) => {
    if (frame.type === "hello") say(welcome, { type: "mark", inbox_seq: 0, head: 0 });
    if (frame.type !== "send") return;
    if (connection === 1) return socket.close(4001, "stalled reader");
    say({ type: "sent", chat_id: CHAT, client_msg_id: frame.client_msg_id, message_id: "7", seq: 1 });
  });
  const { code, frames, err } = await run(server.url, "send", CHAT, "hello");
  assert.equal(code, 0, err);
  assert.equal(frames.filter((frame) => frame.type === "sent").length, 1);
  const [one, two] = server.heard.filter((frame) => frame.type === "send");
  assert.deepEqual([one.client_msg_id, one.body, one.connection], [two.client_msg_id, two.body, two.connection - 1]);
  await server.close();
});

test("unavailable is tried again, a final error ends in a failure", async () => {
  let tries = 0;
  const server = await peer((frame, say) => {
    if (frame.type === "hello") say(welcome);
    if (frame.type !== "send") return;
    tries += 1;
    const { client_msg_id } = frame;
    const code = tries === 1 ? "unavailable" : "no_such_chat";
    say({ type: "error", code, message: "no", client_msg_id, chat_id: CHAT, retry_after_ms: 10 });
  });
  const { code, err } = await run(server.url, "send", CHAT, "hello");
  assert.deepEqual([code, tries], [1, 2]);
  assert.match(err, /no_such_chat/);
  await server.close();
});

test("a hole in a chat is filled from history", async () => {
  const server = await peer((frame, say) => {
    if (frame.type === "hello") say(welcome, event(1), event(5), { type: "mark", inbox_seq: 2, head: 2 });
    if (frame.type !== "history") return;
    const { request_id, after } = frame;
    const events = [after + 1, after + 2].map(event).map(({ type, ...rest }) => rest);
    say({ type: "history_page", request_id, chat_id: CHAT, events, more: after < 3 });
  });
  const { code, err } = await run(server.url, "--state", state("hole"), "--until-synced", "--confirm", "tail");
  assert.equal(code, 0, err);
  assert.deepEqual(kept("hole").chats[CHAT], [[1, 5]]);
  assert.deepEqual(server.heard.filter((frame) => frame.type === "history").map((frame) => frame.after), [1, 3]);
  assert.deepEqual(server.heard.filter((frame) => frame.type === "delivered").map((frame) => frame.seq), [5]);
  await server.close();
});

test("a page of before does not close the hole of a newer event", async () => {
  const server = await peer((frame, say) => {
    if (frame.type === "hello") say(welcome, event(1), event(3), { type: "mark", inbox_seq: 2, head: 2 });
    if (frame.type !== "history") return;
    const { request_id, after } = frame;
    const newer = [4, 5, 6].map(event).map(({ type, ...rest }) => rest);
    // Number 2 is not ours to read; 6 comes while the page that says so is on its way.
    if (after === 1) say(event(6), { type: "history_page", request_id, chat_id: CHAT, events: [], more: false });
    else say({ type: "history_page", request_id, chat_id: CHAT, events: newer, more: false });
  });
  const { code, err } = await run(server.url, "--state", state("newer"), "--until-synced", "--confirm", "tail");
  assert.equal(code, 0, err);
  assert.deepEqual(server.heard.filter((frame) => frame.type === "history").map((frame) => frame.after), [1, 3]);
  assert.deepEqual(kept("newer").chats[CHAT], [[1, 6]]);
  await server.close();
});

test("truncated: the chats are read before the device counts as synced", async () => {
  const server = await peer((frame, say) => {
    if (frame.type === "hello") say(welcome, { type: "truncated", mark: 70 });
    if (frame.type === "chats") say({ type: "chat_list", request_id: frame.request_id, chats: [], more: false });
  });
  const { code, err } = await run(server.url, "--state", state("truncated"), "--until-synced", "tail");
  assert.equal(code, 0, err);
  assert.deepEqual([kept("truncated").mark, kept("truncated").refresh], [70, false]);
  assert.ok(server.heard.some((frame) => frame.type === "chats"));
  await server.close();
});

test("close codes: stop at 4020, a void ticket gives way to the token", async () => {
  const replaced = await peer((frame, say, socket) => socket.close(4020, "replaced"));
  assert.equal((await run(replaced.url, "hello")).code, 3);
  assert.equal(replaced.heard.length, 1, "no second try");
  await replaced.close();
  const server = await peer((frame, say, socket, connection) => {
    if (frame.type !== "hello") return;
    if (connection === 2) return socket.close(4010, "unauthenticated");
    say(welcome);
  });
  assert.equal((await run(server.url, "--state", state("ticket"), "hello")).code, 0);
  const second = await run(server.url, "--state", state("ticket"), "hello");
  assert.equal(second.code, 0, second.err);
  assert.deepEqual(server.heard.map((frame) => frame.resume), [undefined, "ticket", undefined]);
  await server.close();
});

test("the token in the header, and a ping while nothing else is said", async () => {
  const server = await peer((frame, say) => {
    if (frame.type === "hello") say({ ...welcome, heartbeat_interval_ms: 500 });
    if (frame.type === "ping") say(event(1));
  });
  const { code, err } = await run(server.url, "--auth", "header", "--expect", "1", "tail");
  assert.equal(code, 0, err);
  const hello = server.heard[0];
  assert.deepEqual([hello.header, hello.token], ["Bearer t0ken", undefined]);
  await server.close();
});

test("what does not come in time is a failure", async () => {
  const server = await peer((frame, say) => frame.type === "hello" && say(welcome));
  const { code, err } = await run(server.url, "--timeout", "300", "--expect", "1", "tail");
  assert.equal(code, 1);
  assert.match(err, /timed out after 300 ms, 0 new events/);
  await server.close();
});
