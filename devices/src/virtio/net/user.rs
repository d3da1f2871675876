//! A network of one other host, in the process: it answers ARP, DHCP and pings, and echoes what comes to port 7 by TCP
//! and UDP (RFC 862).
//!
//! The protocols are smoltcp's; here are the DHCP server, which it has not, and the echo service. Its clock is virtual
//! time and its only randomness a seed, so that a run repeats. Nothing ever leaves the process.

use std::collections::VecDeque;

use emu_core::time::Instant;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, HardwareAddress, IpCidr, IpEndpoint, Ipv4Address,
};

use super::{Backend, MAX_FRAME, MAX_WAITING};

/// Address of the host, which is also the router that DHCP names.
pub const GATEWAY: [u8; 4] = [10, 0, 2, 2];
/// Address that DHCP gives the guest.
pub const GUEST: [u8; 4] = [10, 0, 2, 15];
const PREFIX: u8 = 24;
const MASK: [u8; 4] = [255, 255, 255, 0];
const LEASE_SECONDS: u32 = 86_400;

const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0x00, 0xbf, 0xff, 0xfe]);
const ECHO_PORT: u16 = 7;
const DHCP_SERVER_PORT: u16 = 67;
const DHCP_CLIENT_PORT: u16 = 68;
/// TCP connections at a time; a further one is refused.
const CONNECTIONS: usize = 8;
/// Bytes that a socket holds each way.
const BUFFER: usize = 16 << 10;
const DATAGRAMS: usize = 16;
/// Most rounds of stack and services for one frame or timer.
const ROUNDS: u32 = 16;
/// A unit of virtual time is a nanosecond; smoltcp counts microseconds.
const UNITS_A_MICROSECOND: u64 = 1000;

/// The frames between guest and host.
#[derive(Debug, Default)]
struct Wire {
    from_guest: VecDeque<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
}

struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Room<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, timestamp: time::Instant) -> Option<(Frame, Room<'_>)> {
        if self.to_guest.len() >= MAX_WAITING {
            return None;
        }
        let frame = self.from_guest.pop_front()?;
        self.transmit(timestamp).map(|room| (Frame(frame), room))
    }
    fn transmit(&mut self, _timestamp: time::Instant) -> Option<Room<'_>> {
        (self.to_guest.len() < MAX_WAITING).then_some(Room(&mut self.to_guest))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME as usize;
        capabilities
    }
}

/// The network.
pub struct UserNetwork {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    echo_udp: SocketHandle,
    echo_tcp: [SocketHandle; CONNECTIONS],
    now: Instant,
    due: Option<Instant>,
}

impl core::fmt::Debug for UserNetwork {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("UserNetwork").field("wire", &self.wire).field("due", &self.due).finish_non_exhaustive()
    }
}

fn clock(now: Instant) -> time::Instant {
    time::Instant::from_micros((now.units() / UNITS_A_MICROSECOND) as i64)
}

fn datagrams() -> udp::PacketBuffer<'static> {
    udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; DATAGRAMS], vec![0; BUFFER])
}

fn bound(port: u16) -> udp::Socket<'static> {
    let mut socket = udp::Socket::new(datagrams(), datagrams());
    // Fails for port 0 or a socket that is open only.
    let _ = socket.bind(port);
    socket
}

impl UserNetwork {
    /// The network; `seed` decides its TCP sequence numbers.
    pub fn new(seed: u64) -> UserNetwork {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ethernet(MAC));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::new(Ipv4Address::from(GATEWAY).into(), PREFIX));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = sockets.add(bound(DHCP_SERVER_PORT));
        let echo_udp = sockets.add(bound(ECHO_PORT));
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let echo_tcp = core::array::from_fn(|_| sockets.add(tcp::Socket::new(buffer(), buffer())));
        let mut this =
            UserNetwork { wire, interface, sockets, dhcp, echo_udp, echo_tcp, now: Instant::ZERO, due: None };
        this.run();
        this
    }

    /// Lets stack and services work until nothing changes.
    fn run(&mut self) {
        let now = clock(self.now);
        for _ in 0..ROUNDS {
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
            if !self.serve() {
                break;
            }
        }
        let due = self.interface.poll_at(now, &self.sockets);
        self.due = due.map(|at| {
            let at = Instant::new(at.total_micros().max(0) as u64 * UNITS_A_MICROSECOND);
            // What could be done now is done, but for want of room on the wire: a millisecond later, then.
            if at > self.now { at } else { Instant::new(self.now.units() + 1000 * UNITS_A_MICROSECOND) }
        });
    }

    /// One round of the services; whether any did something.
    fn serve(&mut self) -> bool {
        let mut busy = false;
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.dhcp);
        if let Ok((request, _)) = socket.recv() {
            if let Some(answer) = answer(request) {
                let client = IpEndpoint::new(Ipv4Address::BROADCAST.into(), DHCP_CLIENT_PORT);
                // Lost when there is no room; the client asks again.
                let _ = socket.send_slice(&answer, client);
            }
            busy = true;
        }
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.echo_udp);
        if socket.can_send()
            && let Ok((bytes, from)) = socket.recv().map(|(bytes, from)| (bytes.to_vec(), from))
        {
            let _ = socket.send_slice(&bytes, from);
            busy = true;
        }
        for handle in self.echo_tcp {
            busy |= echo(self.sockets.get_mut(handle));
        }
        busy
    }
}

/// One round of a TCP connection: what came is sent back, and the connection ends when the guest ends it.
fn echo(socket: &mut tcp::Socket<'_>) -> bool {
    if !socket.is_open() {
        return socket.listen(ECHO_PORT).is_ok();
    }
    let mut busy = false;
    while socket.can_recv() && socket.can_send() {
        let mut bytes = [0; 2048];
        let room = (socket.send_capacity() - socket.send_queue()).min(bytes.len());
        let Ok(len) = socket.recv_slice(&mut bytes[..room]) else { break };
        // There is room.
        let _ = socket.send_slice(&bytes[..len]);
        busy = true;
    }
    if socket.state() == tcp::State::CloseWait && socket.recv_queue() == 0 {
        socket.close();
        busy = true;
    }
    busy
}

/// The DHCP server's answer to a message (RFC 2131): every client is given the one address there is.
fn answer(request: &[u8]) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(request).ok()?;
    let request = DhcpRepr::parse(&packet).ok()?;
    let other_server = request.server_identifier.is_some_and(|server| server != Ipv4Address::from(GATEWAY));
    let other_address = request.requested_ip.is_some_and(|address| address != Ipv4Address::from(GUEST));
    let message_type = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if other_server => return None,
        DhcpMessageType::Request if other_address => DhcpMessageType::Nak,
        DhcpMessageType::Request => DhcpMessageType::Ack,
        _ => return None,
    };
    let given = message_type != DhcpMessageType::Nak;
    let only_if_given = |address: [u8; 4]| given.then(|| Ipv4Address::from(address));
    let reply = DhcpRepr {
        message_type,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: Ipv4Address::UNSPECIFIED,
        your_ip: only_if_given(GUEST).unwrap_or(Ipv4Address::UNSPECIFIED),
        server_ip: Ipv4Address::from(GATEWAY),
        router: only_if_given(GATEWAY),
        subnet_mask: only_if_given(MASK),
        relay_agent_ip: Ipv4Address::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(Ipv4Address::from(GATEWAY)),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        renew_duration: None,
        rebind_duration: None,
        lease_duration: given.then_some(LEASE_SECONDS),
        additional_options: &[],
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).ok()?;
    Some(bytes)
}

impl Backend for UserNetwork {
    fn send(&mut self, frame: &[u8], now: Instant) {
        self.now = self.now.max(now);
        if self.wire.from_guest.len() < MAX_WAITING {
            self.wire.from_guest.push_back(frame.to_vec());
        }
        self.run();
    }
    fn receive(&mut self) -> Option<Vec<u8>> {
        let was_full = self.wire.to_guest.len() >= MAX_WAITING;
        let frame = self.wire.to_guest.pop_front();
        if was_full {
            self.run();
        }
        frame
    }
    fn next_event(&self) -> Option<Instant> {
        self.due
    }
    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.run();
    }
}
