// The command line of the Node client: `node client.mjs --url URL --token TOKEN --device HEX COMMAND...`.
// Every frame from the server is a line of JSON on stdout; what went wrong is on stderr.
// Needs `npm ci` in this folder once; `node --test` runs its own tests.
// Exit codes: 0 did what it was asked, 1 failed or timed out, 2 wrong usage, 3 closed for good by the server.

import { parseArgs } from "node:util";
import { Client, Failure, State, randomId } from "./parley.mjs";

const USAGE = `usage: node client.mjs --url ws://HOST:PORT/ws --token TOKEN [OPTION...] COMMAND [ARGUMENT...]

commands:
  hello                       open a session, nothing else
  tail                        print frames until --until-synced, --expect or a signal
  send TO TEXT                TO is a name or a chat id; waits for sent
  history WITH                one page; --before, --after, --limit; --all pages to the end
  chats                       all pages
  members CHAT, resolve NAME..., ping
  delivered CHAT SEQ, read CHAT SEQ, mute CHAT UNTIL_MS, subscribe CHAT
  group-create TITLE NAME..., group-add CHAT NAME..., group-remove CHAT NAME..., leave CHAT
  say JSON...                 send frames as they stand, then a ping

options:
  --device HEX        128-bit device id (random when absent)    --state FILE   keep mark, ticket, events seen
  --mark N            present this mark in place of the state's  --auth hello|header  where the token goes (hello)
  --until-synced      end when caught up                         --expect N     end after N events that are new
  --timeout MS        fail after this long (30000; 0: never)     --once         do not reconnect
  --no-fill           leave holes                                --confirm      send delivered marks
  --raw               print events that the device has, too      --client-msg-id HEX   of send`;

const options = {
  url: { type: "string" },
  token: { type: "string" },
  device: { type: "string" },
  state: { type: "string" },
  mark: { type: "string" },
  auth: { type: "string", default: "hello" },
  "act-for": { type: "string" },
  "until-synced": { type: "boolean" },
  expect: { type: "string" },
  timeout: { type: "string", default: "30000" },
  once: { type: "boolean" },
  "no-fill": { type: "boolean" },
  confirm: { type: "boolean" },
  raw: { type: "boolean" },
  before: { type: "string" },
  after: { type: "string" },
  limit: { type: "string" },
  all: { type: "boolean" },
  "client-msg-id": { type: "string" },
};

function usage(message) {
  console.error(`${message}\n\n${USAGE}`);
  process.exit(2);
}

function number(text, what) {
  const value = Number(text);
  if (!/^\d+$/.test(text ?? "") || !Number.isSafeInteger(value)) usage(`${what}: a number`);
  return value;
}

function commandLine() {
  try {
    return parseArgs({ options, allowPositionals: true });
  } catch (error) {
    return usage(error.message);
  }
}

const { values, positionals } = commandLine();
const [command, ...args] = positionals;
const url = values.url ?? process.env.PARLEY_URL ?? "ws://127.0.0.1:7400/ws";
const token = values.token ?? process.env.PARLEY_TOKEN;
const id = (text, what) => (/^[0-9a-f]{32}$/.test(text) ? text : usage(`${what}: 32 lower-case hex digits`));

async function users(client, names) {
  if (names.length === 0) return [];
  const page = await client.request({ type: "resolve", names });
  const missing = names.filter((name) => !page.users.some((user) => user.name === name));
  if (missing.length > 0) throw new Failure(`no user is called ${missing.join(", ")}`);
  return page.users.map((user) => user.user_id);
}

async function change(client, chat_id, change) {
  await client.command({ type: "group_change", chat_id, change });
}

const commands = {
  hello: async () => {},
  tail: async (client) => {
    if (!values["until-synced"] && values.expect === undefined) await client.orEnd(new Promise(() => {}));
  },
  send: async (client, [to, text]) => {
    if (text === undefined) usage("send TO TEXT");
    const body = { message: { content_type: "text/plain", payload: { text } } };
    const client_msg_id = id(values["client-msg-id"] ?? randomId(), "--client-msg-id");
    await client.command({ type: "send", chat_id: await client.chatOf(to), client_msg_id, body });
  },
  history: async (client, [chat]) => {
    if (chat === undefined) usage("history WITH");
    const ask = { type: "history", chat_id: await client.chatOf(chat) };
    for (const bound of ["before", "after", "limit"]) {
      if (values[bound] !== undefined) ask[bound] = number(values[bound], `--${bound}`);
    }
    for (let more = true; more; ) {
      const page = await client.request(ask);
      more = Boolean(values.all) && page.more && page.events.length > 0;
      if (more && ask.after !== undefined) ask.after = page.events.at(-1).seq;
      else if (more) ask.before = page.events[0].seq;
    }
  },
  chats: (client) => client.chats(),
  members: async (client, [chat]) => {
    const ask = { type: "members", chat_id: await client.chatOf(chat ?? usage("members CHAT")) };
    for (let more = true; more; ) {
      const page = await client.request(ask);
      more = page.more && page.members.length > 0;
      ask.after = page.members.at(-1)?.user_id;
    }
  },
  resolve: async (client, names) => void (await users(client, names)),
  ping: (client) => client.ping(),
  delivered: (client, [chat, seq]) => position(client, "delivered", chat, seq),
  read: (client, [chat, seq]) => position(client, "read", chat, seq),
  mute: async (client, [chat, until]) => {
    const until_ms = number(until, "UNTIL_MS");
    await client.tell({ type: "mute", chat_id: await client.chatOf(chat), until_ms });
  },
  subscribe: async (client, [chat]) => {
    const chat_id = await client.chatOf(chat ?? usage("subscribe CHAT"));
    await client.tell({ type: "subscribe", chat_id });
  },
  "group-create": async (client, [title, ...names]) => {
    if (title === undefined) usage("group-create TITLE NAME...");
    await client.command({ type: "group_create", title, members: await users(client, names) });
  },
  "group-add": async (client, [chat, ...names]) => {
    await change(client, id(chat ?? "", "CHAT"), { add: { users: await users(client, names) } });
  },
  "group-remove": async (client, [chat, ...names]) => {
    await change(client, id(chat ?? "", "CHAT"), { remove: { users: await users(client, names) } });
  },
  leave: (client, [chat]) => change(client, id(chat ?? "", "CHAT"), { leave: {} }),
  say: async (client, frames) => {
    for (const frame of frames) client.socket.send(frame);
    await client.ping();
  },
};

async function position(client, type, chat, seq) {
  if (seq === undefined) usage(`${type} CHAT SEQ`);
  await client.tell({ type, chat_id: await client.chatOf(chat), seq: number(seq, "SEQ") });
}

/** What `--until-synced` and `--expect` ask for, besides the command. */
async function conditions(client) {
  const expected = values.expect === undefined ? 0 : number(values.expect, "--expect");
  const met = () => (!values["until-synced"] || client.synced) && client.fresh >= expected && client.filling.size === 0;
  while (!met()) await client.orEnd(Promise.race([client.until(() => true), new Promise((r) => setTimeout(r, 20))]));
}

async function run() {
  if (!(command in commands)) usage(command === undefined ? "a command is needed" : `no command ${command}`);
  if (!["hello", "header"].includes(values.auth)) usage("--auth hello|header");
  const state = new State(values.state);
  if (values.mark !== undefined) state.data.mark = number(values.mark, "--mark");
  const device = id(values.device ?? state.data.device ?? randomId(), "--device");
  state.data.device = device;
  const client = new Client({
    url,
    token,
    device,
    state,
    authHeader: values.auth === "header",
    actFor: values["act-for"],
    once: values.once,
    fill: !values["no-fill"],
    confirm: values.confirm,
    onFrame: (frame, fresh) => (fresh || values.raw) && process.stdout.write(`${JSON.stringify(frame)}\n`),
    log: (text) => console.error(text),
  });
  const patience = number(values.timeout, "--timeout");
  const endless = command === "tail" && !values["until-synced"] && values.expect === undefined;
  if (patience > 0 && !endless) {
    const late = () => client.end(new Failure(`timed out after ${patience} ms, ${client.fresh} new events`));
    setTimeout(late, patience).unref();
  }
  let stopped = false;
  const stop = new Promise((done) => {
    for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => done((stopped = true)));
  });
  try {
    const work = async () => {
      await client.start();
      await commands[command](client, args);
      await conditions(client);
    };
    await Promise.race([work(), stop]);
    if (values.confirm && client.open && !stopped) {
      client.confirm();
      await client.ping();
    }
  } finally {
    await client.close();
  }
}

try {
  await run();
  process.exit(0);
} catch (error) {
  console.error(error instanceof Failure ? error.message : error);
  process.exit(error.code === 3 ? 3 : 1);
}
