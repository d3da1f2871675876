//! The other host of the user network, asked frame by frame.

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::*;

use super::*;
use crate::virtio::net::{Backend, GATEWAY, GUEST, UserNetwork};

const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0xbf, 0, 0]);

fn ethernet(to: EthernetAddress, kind: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let repr = EthernetRepr { src_addr: MAC, dst_addr: to, ethertype: kind };
    repr.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    bytes[14..].copy_from_slice(payload);
    bytes
}

fn arp(operation: ArpOperation) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: MAC,
        source_protocol_addr: GUEST.into(),
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: GATEWAY.into(),
    };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    ethernet(EthernetAddress::BROADCAST, EthernetProtocol::Arp, &bytes)
}

fn ip(from: [u8; 4], to: [u8; 4], protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: from.into(),
        dst_addr: to.into(),
        next_header: protocol,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 20 + payload.len()];
    repr.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    bytes[20..].copy_from_slice(payload);
    ethernet(EthernetAddress::BROADCAST, EthernetProtocol::Ipv4, &bytes)
}

fn udp(from: [u8; 4], to: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: ports.0, dst_port: ports.1 };
    let mut bytes = vec![0; 8 + payload.len()];
    let (src, dst) = (Ipv4Address::from(from).into(), Ipv4Address::from(to).into());
    let fill = |place: &mut [u8]| place.copy_from_slice(payload);
    let packet = &mut UdpPacket::new_unchecked(&mut bytes);
    repr.emit(packet, &src, &dst, payload.len(), fill, &ChecksumCapabilities::default());
    ip(from, to, IpProtocol::Udp, &bytes)
}

/// The payload of an IPv4 frame, its headers being 14 and 20 bytes.
fn payload(frame: &[u8], header: usize) -> &[u8] {
    &frame[34 + header..]
}

/// A network that knows the guest's address.
fn network() -> UserNetwork {
    let mut network = UserNetwork::new(1);
    network.send(&arp(ArpOperation::Request), NOW);
    let reply = network.receive().expect("an ARP reply");
    assert_eq!((&reply[..6], &reply[20..22], &reply[28..32]), (&MAC.0[..], &[0, 2][..], &GATEWAY[..]));
    network
}

#[test]
fn pings_and_datagrams_come_back() {
    let mut network = network();
    let echo = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 9, data: b"ping" };
    let mut bytes = vec![0; echo.buffer_len()];
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    network.send(&ip(GUEST, GATEWAY, IpProtocol::Icmp, &bytes), NOW);
    let reply = network.receive().expect("an echo reply");
    assert_eq!((payload(&reply, 0)[0], payload(&reply, 8)), (0, &b"ping"[..]));
    network.send(&udp(GUEST, GATEWAY, (4000, 7), b"datagram"), NOW);
    assert_eq!(payload(&network.receive().expect("echoed"), 8), b"datagram");
    network.send(&udp(GUEST, GATEWAY, (4000, 99), b"datagram"), NOW);
    let refused = network.receive().expect("a message");
    assert_eq!(payload(&refused, 0)[..2], [3, 3], "port unreachable");
    assert_eq!(network.receive(), None);
}

#[test]
fn dhcp_gives_the_guest_its_address() {
    let mut network = UserNetwork::new(1);
    let mut ask = |message_type, requested: Option<[u8; 4]>| {
        let repr = DhcpRepr {
            message_type,
            transaction_id: 0x1234_5678,
            secs: 0,
            client_hardware_address: MAC,
            client_ip: Ipv4Address::UNSPECIFIED,
            your_ip: Ipv4Address::UNSPECIFIED,
            server_ip: Ipv4Address::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Address::UNSPECIFIED,
            broadcast: false,
            requested_ip: requested.map(Ipv4Address::from),
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            renew_duration: None,
            rebind_duration: None,
            lease_duration: None,
            additional_options: &[],
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).expect("room");
        network.send(&udp([0; 4], [255; 4], (68, 67), &bytes), NOW);
        let reply = network.receive().expect("an answer");
        let packet = DhcpPacket::new_checked(payload(&reply, 8)).expect("well formed");
        let reply = DhcpRepr::parse(&packet).expect("well formed");
        assert_eq!((reply.transaction_id, reply.server_identifier), (0x1234_5678, Some(GATEWAY.into())));
        (reply.message_type, reply.your_ip.octets(), reply.router.map(|router| router.octets()))
    };
    assert_eq!(ask(DhcpMessageType::Discover, None), (DhcpMessageType::Offer, GUEST, Some(GATEWAY)));
    assert_eq!(ask(DhcpMessageType::Request, Some(GUEST)), (DhcpMessageType::Ack, GUEST, Some(GATEWAY)));
    assert_eq!(ask(DhcpMessageType::Request, Some([10, 0, 2, 9])), (DhcpMessageType::Nak, [0; 4], None));
}

#[test]
fn a_connection_that_is_not_answered_is_asked_again_by_virtual_time() {
    let mut network = network();
    let syn = TcpRepr {
        src_port: 5000,
        dst_port: 7,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(100),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: Some(1000),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut bytes = vec![0; syn.buffer_len()];
    let (src, dst) = (Ipv4Address::from(GUEST).into(), Ipv4Address::from(GATEWAY).into());
    syn.emit(&mut TcpPacket::new_unchecked(&mut bytes), &src, &dst, &ChecksumCapabilities::default());
    network.send(&ip(GUEST, GATEWAY, IpProtocol::Tcp, &bytes), NOW);
    let answer = network.receive().expect("SYN and ACK");
    assert_eq!(payload(&answer, 0)[13] & 0x12, 0x12);
    assert_eq!(network.receive(), None);
    let due = network.next_event().expect("a timer");
    assert!(due > NOW);
    network.advance(due);
    let again = network.receive().expect("once more");
    assert_eq!(payload(&again, 0)[4..12], payload(&answer, 0)[4..12]);
}

proptest! {
    /// Frames of any kind, sensible headers before random bytes: no panic, and the same history twice is the same.
    #[test]
    fn any_frames_give_the_same_answers_twice(
        frames in prop::collection::vec((0..5_usize, prop::collection::vec(any::<u8>(), 0..200), 0..5_000_000_u64), 0..20),
    ) {
        let run = || {
            let mut network = network();
            let (mut now, mut answers) = (NOW, Vec::new());
            for (kind, bytes, later) in &frames {
                now = Instant::new(now.units() + later);
                let frame = match kind {
                    0 => bytes.clone(),
                    1 => ethernet(EthernetAddress::BROADCAST, EthernetProtocol::Arp, bytes),
                    2 => ip(GUEST, GATEWAY, IpProtocol::Tcp, bytes),
                    3 => ip(GUEST, GATEWAY, IpProtocol::Icmp, bytes),
                    _ => udp(GUEST, [255; 4], (68, 67), bytes),
                };
                network.send(&frame, now);
                network.advance(now);
                answers.extend(core::iter::from_fn(|| network.receive()));
                assert!(network.next_event().is_none_or(|due| due > now));
            }
            answers
        };
        prop_assert_eq!(run(), run());
    }
}
