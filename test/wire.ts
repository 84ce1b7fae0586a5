/**
 * What a guest would send and receive, frame by frame: a QEMU without a machine passes each frame of a tap on as a UDP
 * datagram, and back. The kernel sees what it sees with a guest.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import dgram from 'node:dgram';
import type { AddressInfo } from 'node:net';
import { findQemu } from '../src/qemu/probe.js';

export class Wire {
  readonly received: Buffer[] = [];
  readonly #socket: dgram.Socket;
  readonly #qemu: ChildProcess;
  readonly #peerPort: number;

  private constructor(socket: dgram.Socket, qemu: ChildProcess, peerPort: number) {
    this.#socket = socket;
    this.#qemu = qemu;
    this.#peerPort = peerPort;
    socket.on('message', (frame) => this.received.push(frame));
  }

  /** The tap exists. Resolves when QEMU has it open. */
  static async attach(tap: string): Promise<Wire> {
    const socket = await bound();
    // Free for a moment, and taken by QEMU a moment later.
    const spare = await bound();
    const peerPort = spare.address().port;
    await new Promise<void>((resolve) => spare.close(resolve));
    const { path } = await findQemu();
    const netdevs = [
      `tap,id=t,ifname=${tap},script=no,downscript=no,vhost=off`,
      'hubport,id=h0,hubid=0,netdev=t',
      `socket,id=s,udp=127.0.0.1:${(socket.address() as AddressInfo).port},localaddr=127.0.0.1:${peerPort}`,
      'hubport,id=h1,hubid=0,netdev=s',
    ].flatMap((netdev) => ['-netdev', netdev]);
    const words = ['-accel', 'tcg', '-machine', 'none', '-nodefaults', '-display', 'none', '-qmp', 'stdio', ...netdevs];
    const qemu = spawn(path, words, { stdio: ['pipe', 'pipe', 'ignore'] });
    // Its greeting comes when everything is open.
    await new Promise((resolve) => qemu.stdout.once('data', resolve));
    return new Wire(socket, qemu, peerPort);
  }

  send(frame: Buffer): void {
    this.#socket.send(frame, this.#peerPort, '127.0.0.1');
  }

  /** Whether a frame with this mark in it was received. */
  has(mark: string): boolean {
    return this.received.some((frame) => frame.includes(mark));
  }

  close(): void {
    this.#qemu.kill('SIGKILL');
    this.#socket.close();
  }
}

async function bound(): Promise<dgram.Socket> {
  const socket = dgram.createSocket({ type: 'udp4', recvBufferSize: 4 * 1024 * 1024 });
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve));
  return socket;
}

const hex = (text: string): Buffer => Buffer.from(text.replace(/[: ]/g, ''), 'hex');
export const BROADCAST = 'ff:ff:ff:ff:ff:ff';

/** A frame of any kind, `mark` at its end. */
export function frame(from: string, to: string, etherType: string, payload: Buffer, mark: string): Buffer {
  return Buffer.concat([hex(to), hex(from), hex(etherType), payload, Buffer.from(mark)]);
}

const ipv4 = (address: string): Buffer => Buffer.from(address.split('.').map(Number));

export function arp(from: string, sender: { mac: string; address: string }, mark: string): Buffer {
  const fixed = hex('0001 0800 06 04 0002');
  const target = Buffer.concat([hex(BROADCAST), ipv4(sender.address)]);
  const payload = Buffer.concat([fixed, hex(sender.mac), ipv4(sender.address), target]);
  return frame(from, BROADCAST, '0806', payload, mark);
}

/** IPv4 with UDP to the discard port. */
export function udp(from: string, source: string, target: string, mark: string, fill = 0): Buffer {
  const data = Buffer.concat([Buffer.from(mark), Buffer.alloc(fill)]);
  const header = hex('4500 0000 0000 0000 40 11 0000 00000000 00000000');
  header.writeUInt16BE(28 + data.length, 2);
  ipv4(source).copy(header, 12);
  ipv4(target).copy(header, 16);
  header.writeUInt16BE(checksum(header), 10);
  const ports = hex('0009 0009 0000 0000');
  ports.writeUInt16BE(8 + data.length, 4);
  return Buffer.concat([hex(BROADCAST), hex(from), hex('0800'), header, ports, data]);
}

/** IPv6 with ICMPv6 of a type, and a target where that has one. Addresses as 32 hexadecimal digits. */
export function icmp6(from: string, source: string, type: number, target: string, mark: string): Buffer {
  const data = Buffer.concat([Buffer.from([type, 0, 0, 0, 0x20, 0, 0, 0]), hex(target), Buffer.from(mark)]);
  const header = hex('60000000 0000 3a ff');
  header.writeUInt16BE(data.length, 4);
  const addresses = Buffer.concat([hex(source), hex(`ff02${'0'.repeat(27)}1`)]);
  return frame(from, '33:33:00:00:00:01', '86dd', Buffer.concat([header, addresses, data]), '');
}

function checksum(bytes: Buffer): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += bytes.readUInt16BE(i);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
