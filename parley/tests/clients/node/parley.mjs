// A client of parley.v1.json as docs/PROTOCOL.md asks for it: one device, its state file, one connection at a time.
// It shares no code with the server. What it is told on the command line lives in client.mjs.

import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import WebSocket from "ws";

const STOP = new Set([1000, 1002, 1003, 1007, 1008, 1009, 1010, 4020, 4021, 4022, 4023, 4024]);
const RETRY_NOW = new Set([1001, 1005, 1006, 1012, 4000, 4001, 4002]);
const REAUTHENTICATE = new Set([4010, 4011]);
const SEND_AGAIN = new Set(["rate_limited", "unavailable", "too_many"]);

/** A failure that a person reads; `code` is the exit code of the process. */
export class Failure extends Error {
  constructor(message, code = 1) {
    super(message);
    this.code = code;
  }
}

/** A random 128-bit id as 32 lower-case hex digits. */
export const randomId = () => randomBytes(16).toString("hex");

/** The id of the direct chat of two users. */
export function directChat(one, other) {
  const [a, b] = [BigInt(one), BigInt(other)].sort((x, y) => (x < y ? -1 : 1));
  return ((1n << 126n) | (a << 63n) | b).toString(16).padStart(32, "0");
}

/** Adds from..to to sorted, disjoint ranges, in place; false if all of it was there. */
export function addRange(ranges, from, to) {
  if (ranges.some(([low, high]) => low <= from && to <= high)) return false;
  const touches = ([low, high]) => low <= to + 1 && from <= high + 1;
  const near = ranges.filter(touches);
  const merged = [Math.min(from, ...near.map(([low]) => low)), Math.max(to, ...near.map(([, high]) => high))];
  const rest = ranges.filter((range) => !touches(range));
  ranges.splice(0, ranges.length, ...[...rest, merged].sort((a, b) => a[0] - b[0]));
  return true;
}

/** What a device keeps: the mark, the ticket, which events it has, commands without an answer. */
export class State {
  constructor(path) {
    this.path = path;
    const empty = { mark: null, resume: null, user_id: null, name: "", refresh: false };
    const kept = path && existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : {};
    this.data = { ...empty, chats: {}, own: {}, pending: [], ...kept };
  }

  /** Replaces the file as a whole, so that a mark is never there without what came before it. */
  save() {
    if (!this.path) return;
    writeFileSync(`${this.path}.new`, JSON.stringify(this.data));
    renameSync(`${this.path}.new`, this.path);
  }

  /** Notes an event; false if it was there. */
  take(event) {
    return addRange((this.data.chats[event.chat_id] ??= []), event.seq, event.seq);
  }

  /** The newest seq that the device has; 0 if it has none. */
  top(chatId) {
    return this.data.chats[chatId]?.at(-1)?.[1] ?? 0;
  }
}

/**
 * One device. `onFrame(frame, fresh)` sees every frame from the server; `fresh` is false for an event that the device
 * has. `options`: url, token, device, state, authHeader, actFor, fill, confirm, log.
 */
export class Client {
  constructor(options) {
    this.options = options;
    this.state = options.state;
    this.requests = new Map(); // request_id -> {frame, done, failed}
    this.commands = new Map(); // client_msg_id -> {frame, done, failed}
    this.pongs = new Map(); // nonce -> {done, failed}
    this.waiters = new Set(); // {test, done}
    this.nextNumber = 1;
    this.dirty = new Map(); // chat_id -> seq to confirm
    this.filling = new Set();
    this.synced = false;
    this.failures = 0;
    this.fresh = 0;
    this.unanswered = null; // the last error that names no command and no request
    for (const frame of this.state.data.pending) {
      this.keep(frame).catch((error) => this.log(`kept command: ${error.message}`));
    }
  }

  log(text) {
    this.options.log?.(text);
  }

  /** Connects, and keeps connected until `close`. Resolves at the first welcome; `ended` rejects when it must stop. */
  start() {
    this.ended = new Promise((_, failed) => (this.end = failed));
    this.ended.catch(() => {});
    const welcome = this.until((frame) => frame.type === "welcome");
    this.connect();
    return this.orEnd(welcome);
  }

  orEnd(promise) {
    return Promise.race([promise, this.ended]);
  }

  connect() {
    const { url, token, authHeader } = this.options;
    const headers = authHeader && token ? { Authorization: `Bearer ${token}` } : {};
    const socket = new WebSocket(url, ["parley.v1.json"], {
      headers,
      perMessageDeflate: false,
      maxPayload: 4 * 1024 * 1024,
      handshakeTimeout: 10_000,
    });
    this.socket = socket;
    this.open = false;
    this.synced = false;
    this.delay = null;
    let refused = null;
    socket.on("open", () => this.hello());
    socket.on("message", (data, binary) => this.message(data, binary));
    socket.on("pong", () => (this.heard = Date.now()));
    socket.on("unexpected-response", (_, response) => {
      refused = response.statusCode;
      response.resume();
      socket.terminate();
    });
    socket.on("error", (error) => this.log(`connection: ${error.message}`));
    socket.on("close", (code, reason) => this.closed(refused, code, String(reason)));
  }

  hello() {
    const { device, token, authHeader, actFor } = this.options;
    const { mark, resume } = this.state.data;
    const frame = { type: "hello", version: 1, device_id: device, client: "parley-node-client 0.1.0" };
    if (resume && !actFor) frame.resume = resume;
    if (token && !authHeader) frame.token = token;
    if (mark !== null) frame.mark = mark;
    if (actFor) frame.act_for = actFor;
    this.write(frame);
  }

  write(frame) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.said = Date.now();
    this.socket.send(JSON.stringify(frame));
  }

  closed(refused, code, reason) {
    this.open = false;
    clearInterval(this.heartbeat);
    if (this.finished) return;
    if (refused !== null && refused < 500 && refused !== 408) {
      return this.end(new Failure(`the upgrade was refused with HTTP ${refused}`, 3));
    }
    this.log(`closed with ${code} ${reason}`);
    if (refused === null && STOP.has(code)) return this.end(new Failure(`closed with ${code} ${reason}`, 3));
    if (refused === null && REAUTHENTICATE.has(code)) {
      const hadTicket = this.state.data.resume !== null;
      this.state.data.resume = null;
      this.state.save();
      // The ticket is void; the token may still hold. Once.
      if (!hadTicket || !this.options.token) return this.end(new Failure(`closed with ${code} ${reason}`, 3));
    }
    if (this.options.once) return this.end(new Failure(`closed with ${code} ${reason}`, 3));
    this.failures += 1;
    const now = refused === null && RETRY_NOW.has(code) && this.failures === 1;
    const later = Math.random() * Math.min(60_000, 1000 * 2 ** Math.min(this.failures, 6));
    this.retry = setTimeout(() => this.connect(), this.delay ?? (now ? 0 : later));
  }

  /** Ends the connection for good. */
  async close() {
    this.finished = true;
    clearInterval(this.heartbeat);
    clearInterval(this.confirming);
    clearTimeout(this.retry);
    this.state.data.pending = [...this.commands.values()].map(({ frame }) => frame);
    this.state.save();
    if (this.socket.readyState === WebSocket.CLOSED) return;
    const gone = new Promise((done) => this.socket.once("close", done));
    const patience = setTimeout(() => this.socket.terminate(), 5000);
    this.socket.close(1000);
    await gone;
    clearTimeout(patience);
  }

  message(data, binary) {
    this.heard = Date.now();
    if (binary) return this.end(new Failure("a binary message on parley.v1.json"));
    let frame;
    try {
      frame = JSON.parse(data.toString());
    } catch (error) {
      return this.end(new Failure(`a message that is not JSON: ${error.message}`));
    }
    const fresh = frame.type !== "event" || this.state.take(frame);
    if (frame.type === "event" && fresh) this.fresh += 1;
    this[`on_${frame.type}`]?.(frame, fresh);
    this.options.onFrame?.(frame, fresh);
    for (const waiter of [...this.waiters]) {
      if (waiter.test(frame)) {
        this.waiters.delete(waiter);
        waiter.done(frame);
      }
    }
  }

  on_welcome(frame) {
    this.open = true;
    this.failures = 0;
    this.welcome = frame;
    const kept = this.state.data;
    Object.assign(kept, { user_id: frame.user_id, name: frame.name || kept.name, resume: frame.resume });
    this.state.save();
    this.heartbeat = setInterval(() => this.beat(), Math.max(100, frame.heartbeat_interval_ms / 5));
    if (this.options.confirm) this.confirming ??= setInterval(() => this.confirm(), 1000);
    // What had no answer is said again, unchanged and in order; requests are asked again.
    for (const { frame: command } of this.commands.values()) this.write(command);
    for (const { frame: request } of this.requests.values()) this.write(request);
    for (const nonce of this.pongs.keys()) this.write({ type: "ping", nonce });
    if (kept.refresh) this.refresh();
  }

  beat() {
    const interval = this.welcome.heartbeat_interval_ms;
    if (Date.now() - this.heard > 2 * interval + interval / 2) return this.socket.terminate();
    if (Date.now() - this.said >= (interval * 4) / 5) this.write({ type: "ping", nonce: 0 });
  }

  on_event(frame, fresh) {
    if (!fresh) return;
    if (this.options.fill && this.state.data.chats[frame.chat_id].length > 1) this.fillHoles(frame.chat_id);
    this.note(frame.chat_id);
  }

  note(chatId) {
    this.dirty.set(chatId, this.state.top(chatId));
  }

  /** Sends the delivered marks that have moved. */
  confirm() {
    for (const [chat_id, seq] of this.dirty) {
      if (!this.filling.has(chat_id)) {
        this.write({ type: "delivered", chat_id, seq });
        this.dirty.delete(chat_id);
      }
    }
  }

  /** Reads what is missing up to the newest event, or up to `head`. */
  async fillHoles(chatId, head = 0) {
    if (this.filling.has(chatId)) return;
    this.filling.add(chatId);
    const ranges = (this.state.data.chats[chatId] ??= []);
    try {
      while (ranges.length > 1 || this.state.top(chatId) < head) {
        const after = ranges[0]?.[1] ?? 0;
        // Known of when the page is asked for: of what comes while it is on its way it need not speak.
        const upto = Math.max(head, ranges.at(-1)?.[1] ?? 0);
        const page = await this.request({ type: "history", chat_id: chatId, after });
        const last = page.events.at(-1)?.seq;
        // Missing between these: not ours to read (a time between two memberships).
        addRange(ranges, after + 1, page.more && last ? last : Math.max(last ?? 0, upto));
      }
    } catch (error) {
      this.log(`hole in ${chatId}: ${error.message}`);
    } finally {
      this.filling.delete(chatId);
    }
  }

  on_history_page(frame) {
    for (const event of frame.events) this.state.take(event);
    this.settle(this.requests, frame.request_id, frame);
  }

  on_own(frame) {
    this.state.data.own[frame.chat_id] = frame;
  }

  on_mark(frame) {
    this.state.data.mark = frame.inbox_seq;
    this.state.save();
    if (frame.inbox_seq >= frame.head && !this.state.data.refresh) this.synced = true;
  }

  on_truncated(frame) {
    Object.assign(this.state.data, { mark: frame.mark, refresh: true });
    this.state.save();
    this.refresh();
  }

  /** After a truncated backlog: the chats as they are now, and with `fill` everything above what the device has. */
  async refresh() {
    if (this.refreshing) return;
    this.refreshing = true;
    try {
      for (const chat of await this.chats()) {
        const top = this.state.top(chat.chat_id);
        if (top > 0 && chat.head_seq > top && this.options.fill) await this.fillHoles(chat.chat_id, chat.head_seq);
        this.state.data.own[chat.chat_id] = { type: "own", ...chat.own };
      }
      this.state.data.refresh = false;
      this.state.save();
      this.synced = true;
    } catch (error) {
      this.end(error);
    } finally {
      this.refreshing = false;
    }
  }

  on_sent(frame) {
    this.settle(this.commands, frame.client_msg_id, frame);
  }

  on_error(frame) {
    const [map, id] = frame.client_msg_id
      ? [this.commands, frame.client_msg_id]
      : [this.requests, frame.request_id ?? -1];
    const entry = map.get(id);
    if (!entry) {
      this.unanswered = frame;
    } else if (SEND_AGAIN.has(frame.code)) {
      setTimeout(() => map.has(id) && this.write(entry.frame), frame.retry_after_ms ?? 1000);
    } else {
      map.delete(id);
      entry.failed(new Failure(`${frame.code}: ${frame.message}`));
    }
  }

  on_chat_list(frame) {
    this.settle(this.requests, frame.request_id, frame);
  }

  on_member_page(frame) {
    this.settle(this.requests, frame.request_id, frame);
  }

  on_users(frame) {
    this.settle(this.requests, frame.request_id, frame);
  }

  on_pong(frame) {
    this.settle(this.pongs, frame.nonce, frame);
  }

  on_reconnect(frame) {
    this.delay = frame.delay_ms;
    this.state.data.resume = frame.resume;
    this.state.save();
  }

  settle(map, id, frame) {
    const entry = map.get(id);
    if (!entry) return;
    map.delete(id);
    entry.done(frame);
  }

  /** Waits for a frame that passes the test. */
  until(test) {
    return new Promise((done) => this.waiters.add({ test, done }));
  }

  keep(frame) {
    return new Promise((done, failed) => this.commands.set(frame.client_msg_id, { frame, done, failed }));
  }

  /** Sends a command until it is answered, over as many connections as that takes. Resolves with `sent`. */
  command(frame) {
    const command = { client_msg_id: randomId(), ...frame };
    const answer = this.keep(command);
    this.state.data.pending = [...this.commands.values()].map((entry) => entry.frame);
    this.state.save();
    if (this.open) this.write(command);
    return this.orEnd(answer);
  }

  /** Asks, and asks again on a new connection. Resolves with the answer. */
  request(frame) {
    const request = { ...frame, request_id: this.nextNumber++ };
    const answer = new Promise((done, failed) => {
      this.requests.set(request.request_id, { frame: request, done, failed });
    });
    if (this.open) this.write(request);
    return this.orEnd(answer);
  }

  /** A round trip: everything said before was looked at when it resolves. */
  ping() {
    const nonce = this.nextNumber++;
    const answer = new Promise((done) => this.pongs.set(nonce, { done }));
    if (this.open) this.write({ type: "ping", nonce });
    return this.orEnd(answer);
  }

  /** Says something that has no answer, and fails if an error came for it. */
  async tell(frame) {
    this.unanswered = null;
    this.write(frame);
    await this.ping();
    if (this.unanswered) throw new Failure(`${this.unanswered.code}: ${this.unanswered.message}`);
  }

  /** All chats, page by page. */
  async chats() {
    const all = [];
    for (let after = null, more = true; more; ) {
      const page = await this.request({ type: "chats", after });
      all.push(...page.chats);
      more = page.more && page.chats.length > 0;
      after = page.chats.at(-1)?.chat_id ?? null;
    }
    return all;
  }

  /** The chat that a name or the text of a chat id means. */
  async chatOf(text) {
    if (/^[0-9a-f]{32}$/.test(text)) return text;
    const { users } = await this.request({ type: "resolve", names: [text] });
    if (users.length === 0) throw new Failure(`no user is called ${text}`);
    return directChat(this.state.data.user_id, users[0].user_id);
  }
}
