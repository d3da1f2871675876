//! The proleptic Gregorian calendar between a count of seconds and the fields of the clock.

/// A date and time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// Year, all digits.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// 1 (Sunday) to 7.
    pub weekday: u8,
}

/// Days of the years before `year` since 0 March of year 0, years beginning in March so that the leap day is last.
const fn days_before_march_year(year: u64) -> u64 {
    year * 365 + year / 4 - year / 100 + year / 400
}

/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH: u64 = 719_468;

impl Date {
    /// From seconds since 1970. Past year 9999 the clock stands still.
    pub const fn from_unix(unix: u64) -> Date {
        let unix = if unix > 253_402_300_799 { 253_402_300_799 } else { unix };
        let days = unix / 86_400;
        let time = unix % 86_400;
        let since_march = days + EPOCH;
        let mut year = since_march * 400 / 146_097;
        while days_before_march_year(year + 1) <= since_march {
            year += 1;
        }
        while days_before_march_year(year) > since_march {
            year -= 1;
        }
        let day_of_year = since_march - days_before_march_year(year);
        // Months from March have lengths 31 30 31 30 31, repeating: 153 days each five.
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
        Date {
            year: year as u16,
            month: month as u8,
            day: day as u8,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
            // 1970 began on a Thursday.
            weekday: ((days + 4) % 7 + 1) as u8,
        }
    }

    /// Seconds since 1970; dates before it are 0. Fields out of range count on into the next larger one.
    pub const fn to_unix(self) -> u64 {
        let month = if self.month == 0 { 1 } else { self.month as u64 };
        let mut year = self.year as u64 + (month - 1) / 12;
        let month = (month - 1) % 12 + 1;
        let from_march = if month >= 3 {
            month - 3
        } else {
            year = year.saturating_sub(1);
            month + 9
        };
        let days = days_before_march_year(year) + (153 * from_march + 2) / 5 + self.day as u64;
        let days = days.saturating_sub(1).saturating_sub(EPOCH);
        days * 86_400 + self.hour as u64 * 3600 + self.minute as u64 * 60 + self.second as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_five_centuries_goes_there_and_back_in_order() {
        let mut last = Date::from_unix(0);
        assert_eq!((last.year, last.month, last.day, last.weekday), (1970, 1, 1, 5));
        for day in 1..180_000_u64 {
            let date = Date::from_unix(day * 86_400 + 12_345);
            assert_eq!(date.to_unix(), day * 86_400 + 12_345);
            let next_day = date.day == last.day + 1 && date.month == last.month;
            let next_month = date.day == 1 && last.day >= 28 && date.month == last.month % 12 + 1;
            assert!(next_day || next_month, "{last:?} then {date:?}");
            assert_eq!(date.weekday, last.weekday % 7 + 1);
            last = date;
        }
        let leap = Date::from_unix(1_709_164_800);
        assert_eq!((leap.year, leap.month, leap.day), (2024, 2, 29));
    }
}
