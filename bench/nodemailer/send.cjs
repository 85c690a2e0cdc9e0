// Sends by nodemailer's pool what it is told to, a line of JSON at a time: "open" once, then "run" for each turn. Each is answered by one line.
'use strict';

const nodemailer = require('nodemailer');
const readline = require('node:readline');

let transport, message, workers;

function open(o) {
  transport = nodemailer.createTransport({
    pool: true,
    host: o.host,
    port: o.port,
    name: 'localhost',
    secure: false,
    requireTLS: Boolean(o.ca),
    ignoreTLS: !o.ca,
    tls: o.ca ? { ca: o.ca } : {},
    maxConnections: o.conns,
    maxMessages: Infinity,
  });
  message = { envelope: { from: o.from, to: o.to }, raw: Buffer.from(o.raw) };
  workers = o.workers;
  return {};
}

function quantile(sorted, q) {
  if (sorted.length === 0) return 0;
  const at = q * (sorted.length - 1);
  const i = Math.floor(at);
  if (i + 1 >= sorted.length) return sorted[sorted.length - 1];
  return sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]);
}

async function run(o) {
  const times = [];
  let taken = 0;
  const began = performance.now();
  const cpu = process.cpuUsage();
  const until = began + o.ms;
  const more = () => (o.count > 0 ? taken++ < o.count : performance.now() < until || taken++ === 0);
  const worker = async () => {
    while (more()) {
      const start = performance.now();
      const info = await transport.sendMail(message);
      if (info.rejected.length > 0) throw new Error('a recipient was refused');
      times.push(performance.now() - start);
    }
  };
  await Promise.all(Array.from({ length: workers }, worker));
  const used = process.cpuUsage(cpu);
  const elapsed = performance.now() - began;
  times.sort((a, b) => a - b);
  return {
    sent: times.length,
    elapsed_ms: elapsed,
    cpu_ms: (used.user + used.system) / 1000,
    p50_ms: quantile(times, 0.5),
    p99_ms: quantile(times, 0.99),
  };
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let answer;
    try {
      const o = JSON.parse(line);
      answer = o.op === 'open' ? open(o) : await run(o);
    } catch (err) {
      answer = { error: String(err && err.message) };
    }
    process.stdout.write(JSON.stringify(answer) + '\n');
  }
  process.exit(0);
}

main();
